// An ECG file -> millivolts by lead. WFDB (formats 16 and 212), columns of text and EDF, read as the Python package
// hf_ecgmamba reads them, refusals included; what it reads beyond that is refused here, in one line that says so.

export const STANDARD_LEADS = ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"];

const LEAST_RATE = 10, MOST_RATE = 100_000;     // Hz
const MOST_SECONDS = 2 * 3600;
const MOST_BYTES = 2 ** 27;
const PYTHON = "the Python package reads it";

/** What the visitor is told, in one line. */
export class Refusal extends Error {}

/**
 * Files as the visitor chose them -> one recording.
 *
 * files: [{name, bytes: Uint8Array}]; for WFDB the header and its signal files.
 * given: {rate (Hz), unit ("mV", "uV", "V", "nV")} for a file that does not state them; unnamedLeads: the leads of
 * unnamed channels, where they are as many.
 *
 * Returns {name, leads, rate (Hz), signal (a Float32Array of millivolts for each lead, NaN where no sample was taken),
 * notes, doubt (why nothing should be found in it, or null), namesAreStated}. Throws a Refusal.
 */
export function readRecording(files, given = {}) {
  const big = files.find(file => file.bytes.length > MOST_BYTES);
  if (big) refuse(`${big.name} has ${big.bytes.length} bytes; this page reads up to ${MOST_BYTES}`);
  const channels = open(files);
  settleRate(channels, given.rate);
  requireLimits(channels);
  const { names, notes, namesAreStated } = settleNames(channels, given.unnamedLeads ?? STANDARD_LEADS);
  settleUnits(channels, given.unit);
  const chosen = chooseLeads(channels, names);
  return assemble(channels, chosen, [...channels.notes, ...notes, ...chosen.notes], namesAreStated);
}

function refuse(reason) {
  throw new Refusal(reason);
}

// -- which format ----------------------------------------------------------------------------------------------------

// Each format makes {name, names, units, rates, signals (Float64Array each), notes}; null is what it does not state.
function open(files) {
  const ending = file => /\.[^.]*$/.exec(file.name.toLowerCase())?.[0] ?? "";
  const headers = files.filter(file => ending(file) === ".hea");
  if (headers.length > 1) refuse(`${headers.length} WFDB headers; choose the files of one recording`);
  if (headers.length === 1) return openWfdb(headers[0], files);
  if (files.length !== 1) refuse(`${files.length} files without a WFDB header; choose one recording`);
  const [file] = files;
  if (file.bytes.length === 0) refuse(`${file.name} is empty`);
  if (text(file.bytes.subarray(0, 8)) === "0       ") return openEdf(file);
  if ([".csv", ".tsv", ".txt"].includes(ending(file))) return openText(file);
  if (ending(file) === ".dat") {
    refuse(`${file.name}: a WFDB signal file, whose header ${stem(file.name)}.hea is missing beside it; choose both`);
  }
  refuse(`${file.name}: not an ECG that this page reads: WFDB (.hea with its .dat), CSV or EDF; the Python package `
    + "reads more formats");
}

const stem = name => name.replace(/\.[^.]*$/, "");
const text = bytes => new TextDecoder("latin1").decode(bytes);

// -- WFDB ------------------------------------------------------------------------------------------------------------

const NUMBER = String.raw`[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?`;
const RECORD_LINE = /^(?<name>\S+?)(?:\/(?<segments>\d+))?\s+(?<signals>\d+)(?:\s+(?<rate>\S+))?(?:\s+(?<rest>.+))?$/;
const RATE = new RegExp(`^(${NUMBER})(?:/${NUMBER}(?:\\(${NUMBER}\\))?)?(?:hz)?$`, "i");
const SIGNAL_LINE = new RegExp(
  String.raw`^(?<file>\S+)\s+(?<format>\d+)(?:x(?<perFrame>\d+))?(?::(?<skew>\d+))?(?:\+(?<offset>\d+))?`
  + String.raw`(?:\s+(?<gain>${NUMBER})(?:\((?<baseline>${NUMBER})\))?(?:/(?<unit>\S+))?(?=\s|$)`
  + String.raw`(?:\s+\d+(?=\s|$)(?:\s+(?<zero>-?\d+)(?=\s|$)(?:\s+-?\d+(?=\s|$)(?:\s+-?\d+(?=\s|$)`
  + String.raw`(?:\s+\d+(?=\s|$))?)?)?)?)?)?(?:\s+(?<name>\S.*))?$`,
);
const DEFAULT_GAIN = 200;       // counts a millivolt, of a signal that states none (WFDB's DEFGAIN)
const DEFAULT_RATE = 250;       // Hz, of a record that states none (WFDB's DEFREQ)

function openWfdb(file, files) {
  const name = stem(file.name), notes = [];
  const lines = decoded(file.bytes).split(/\r\n|\n|\r/).map(line => line.trim()).filter(line => line && line[0] !== "#");
  const record = RECORD_LINE.exec(lines[0] ?? "")?.groups;
  if (!record) refuse(`${name}: the header's first line is not a name, a number of signals and a rate`);
  if (record.segments !== undefined) refuse(`${name} is put together from segments; ${PYTHON}`);

  let rate = DEFAULT_RATE;
  if (record.rate === undefined) notes.push(`the header states no sampling rate: ${rate} Hz, as WFDB has it`);
  else rate = Number(RATE.exec(record.rate.replace(",", "."))?.[1] ?? 0);
  if (!(rate > 0 && rate < Infinity)) {
    refuse(`${name}: the header states a sampling rate of ${record.rate}; expected a number of Hz above 0`);
  }
  const count = Number(record.signals);
  if (count === 0) refuse(`${name} has no signals`);
  if (lines.length - 1 < count) {
    refuse(`${name}: the header describes ${lines.length - 1} signals; its first line says ${count}`);
  }
  const signals = lines.slice(1, count + 1).map((line, k) => wfdbSignal(line, name, k));
  const uncalibrated = signals.filter(signal => signal.gain === null).map(signal => signal.name);
  if (uncalibrated.length) {
    notes.push(`no gain stated, taken as ${DEFAULT_GAIN} counts a mV: ${uncalibrated.join(", ")}`);
  }
  const values = wfdbSamples(name, signals, files, statedLength(record.rest));
  return {
    name, notes, names: signals.map(signal => signal.name), units: signals.map(signal => signal.unit),
    rates: signals.map(signal => rate * signal.perFrame), signals: values,
  };
}

function wfdbSignal(line, record, place) {
  const match = SIGNAL_LINE.exec(line)?.groups;
  if (!match) refuse(`${record}: the header's line '${line.slice(0, 80)}' is not that of a signal`);
  if (match.format !== "16" && match.format !== "212") {
    refuse(`${record} is in WFDB's format ${match.format}; this page reads 16 and 212, the Python package all`);
  }
  if (Number(match.skew ?? 0)) refuse(`${record}: its signals are shifted against one another (skew); ${PYTHON}`);
  return {
    file: match.file, format: match.format, perFrame: Number(match.perFrame ?? 1) || 1,
    offset: Number(match.offset ?? 0), gain: Number(match.gain ?? 0) || null,
    baseline: Number(match.baseline ?? match.zero ?? 0), unit: match.unit ?? "mV",
    name: match.name ?? `channel ${place}`,
  };
}

/** Samples of each signal. What else stands here is a time or a date, and 0 says that the files know. */
function statedLength(rest) {
  const token = (rest ?? "").split(/\s+/)[0];
  return /^(\d+(\.0*)?|\d+(\.\d+)?[eE]\+?\d+)$/.test(token) ? Math.trunc(Number(token)) || null : null;
}

function wfdbSamples(record, signals, files, stated) {
  const groups = groupedBy(signals, signal => signal.file);
  const blocks = [...groups].map(([fileName, members]) => {
    const file = files.find(file => file.name.toLowerCase() === fileName.toLowerCase());
    if (!file) refuse(`${record}: the signal file ${fileName}, named by its header, is missing; choose both`);
    const width = members.reduce((sum, signal) => sum + signal.perFrame, 0);
    const bytes = file.bytes.subarray(members[0].offset), is16 = members[0].format === "16";
    const held = Math.floor(Math.floor(is16 ? bytes.length / 2 : bytes.length * 2 / 3) / width);
    return { fileName, members, width, held, counts: is16 ? counts16(bytes) : counts212(bytes), is16 };
  });
  const frames = stated ?? Math.min(...blocks.map(block => block.held));
  const short = blocks.find(block => block.held < frames);
  if (short) refuse(`${record}: ${short.fileName} holds ${short.held} samples a signal; its header states ${frames}`);

  const values = new Map();
  for (const { members, width, counts, is16 } of blocks) {
    let column = 0;
    for (const signal of members) {
      const out = new Float64Array(frames * signal.perFrame), gain = signal.gain ?? DEFAULT_GAIN;
      const missing = is16 ? -32768 : -2048;
      for (let k = 0; k < out.length; k++) {
        const count = counts[Math.floor(k / signal.perFrame) * width + column + k % signal.perFrame];
        out[k] = count === missing ? NaN : (count - signal.baseline) / gain;
      }
      values.set(signal, out);
      column += signal.perFrame;
    }
  }
  return signals.map(signal => values.get(signal));
}

/** A Map from each key to the items that have it, in order. */
export function groupedBy(items, keyOf) {
  const groups = new Map();
  for (const item of items) groups.set(keyOf(item), [...(groups.get(keyOf(item)) ?? []), item]);
  return groups;
}

function counts16(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  return Int16Array.from({ length: bytes.length >> 1 }, (_, k) => view.getInt16(2 * k, true));
}

/** Two samples of twelve bits lie in three bytes. */
function counts212(bytes) {
  const counts = new Int16Array(Math.floor(bytes.length * 2 / 3));
  for (let k = 0; k < counts.length; k++) {
    const at = 3 * (k >> 1), middle = bytes[at + 1];
    const bits = k & 1 ? bytes[at + 2] | (middle & 0xf0) << 4 : bytes[at] | (middle & 0x0f) << 8;
    counts[k] = bits > 2047 ? bits - 4096 : bits;
  }
  return counts;
}

// -- EDF -------------------------------------------------------------------------------------------------------------

function openEdf(file) {
  const { bytes } = file, name = stem(file.name);
  const broken = reason => refuse(`${file.name}: not an EDF file that can be read (${reason})`);
  const field = (at, size) => text(bytes.subarray(at, at + size)).trim();
  if (bytes.length < 256) broken("its header is cut off");
  if (field(192, 44).startsWith("EDF+D")) refuse(`${file.name} is a recording with holes (EDF+D); ${PYTHON}`);
  const start = Number(field(184, 8)), seconds = Number(field(244, 8)), count = Number(field(252, 4));
  if (!Number.isInteger(count) || count < 1 || !(seconds > 0) || start !== 256 * (count + 1) || bytes.length < start) {
    broken("its header contradicts itself");
  }
  const fields = (offset, size) => Array.from({ length: count }, (_, k) => field(256 + offset * count + size * k, size));
  const labels = fields(0, 16), units = fields(96, 8), sizes = fields(216, 8).map(Number);
  const [least, most, digitalLeast, digitalMost] = [104, 112, 120, 128].map(offset => fields(offset, 8).map(Number));
  if (sizes.some(size => !Number.isInteger(size) || size < 1)) broken("a signal without samples in a record");
  const width = sizes.reduce((sum, size) => sum + size, 0);
  const held = Math.floor((bytes.length - start) / (2 * width)), stated = Number(field(236, 8));
  const records = stated === -1 ? held : stated;
  if (!Number.isInteger(records) || records < 0) broken("it states no number of records");
  if (held < records) broken(`it holds ${held} records; its header states ${records}`);

  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const kept = labels.map((_, k) => k).filter(k => labels[k] !== "EDF Annotations");
  const signals = kept.map(k => {
    const scale = (most[k] - least[k]) / (digitalMost[k] - digitalLeast[k]);
    if (!Number.isFinite(scale) || scale === 0) broken(`signal ${labels[k]} has no range`);
    const offset = most[k] / scale - digitalMost[k], before = sizes.slice(0, k).reduce((sum, size) => sum + size, 0);
    const out = new Float64Array(records * sizes[k]);
    for (let i = 0; i < out.length; i++) {
      const sample = Math.floor(i / sizes[k]) * width + before + i % sizes[k];
      out[i] = scale * (offset + view.getInt16(start + 2 * sample, true));
    }
    return out;
  });
  return {
    name, notes: [], names: kept.map(k => labels[k]), units: kept.map(k => units[k] || null),
    rates: kept.map(k => sizes[k] / seconds), signals,
  };
}

// -- columns of text -------------------------------------------------------------------------------------------------

const EMPTY = new Set(["", "-", "nan", "n/a", "na", "null"]);
const UNIT_WORDS = new Set(["s", "sec", "seconds", "ms", "us", "ns", "samples", "-", "n/a", ""]);

function openText(file) {
  const lines = decoded(file.bytes).split(/\r\n|\n|\r/).filter(line => line.trim());
  const name = stem(file.name), content = [], stated = {};
  let separator;
  for (const line of lines) {
    if (line.startsWith("#")) readComment(file.name, line, stated);
    else if (/^\W?sep=.$/i.test(line.trim())) separator = line.trim().at(-1);
    else content.push(line);
  }
  const mark = line => separator ?? separatorOf(line);
  const first = content.findIndex(line => isRow(cellsOf(line, mark(line))));
  if (first < 0) {
    const found = content.length ? `, but '${content[0].trim().slice(0, 40)}'` : "";
    refuse(found ? `${file.name}: not columns of numbers${found}` : `${file.name} holds no numbers`);
  }
  separator = mark(content[Math.min(first + 1, content.length - 1)]);
  const rows = content.slice(first).map(line => cellsOf(line, separator)), count = rows[0].length;
  if (count > 100 && rows.length <= 64) refuse(`${file.name} holds its leads in rows; ${PYTHON}`);
  const decimal = separator !== "," && rows.some(row => row.some(cell => /^[+-]?\d*,\d+(e[+-]?\d+)?$/i.test(cell)));
  const columns = Array.from({ length: count }, () => new Float64Array(rows.length).fill(NaN));
  rows.forEach((row, at) => {
    if (row.length > count) refuse(`${file.name}: not columns of numbers (a row has ${row.length}, others ${count})`);
    row.forEach((cell, k) => {
      const value = asNumber(decimal ? cell.replace(",", ".") : cell);
      if (value === undefined) refuse(`${file.name}: not columns of numbers ('${cell.slice(0, 40)}' is among them)`);
      columns[k][at] = value;
    });
  });
  const titles = titlesAbove(content.slice(0, first).map(line => cellsOf(line, separator)), count) ?? stated.labels;
  if (titles && titles.length !== count) refuse(`${file.name}: ${titles.length} column names for ${count} columns`);
  return asChannels(name, titles ?? Array(count).fill(null), columns, stated.rate ?? null);
}

/** "Sampling Rate (Hz):= 100" and "Labels:= ECG", as biosppy writes them. */
function readComment(fileName, line, stated) {
  const [, key, value] = /^[# ]*(.*?)\s*:=\s*(.*?)\s*$/.exec(line) ?? [];
  if (key?.toLowerCase() === "sampling rate (hz)" && value) {
    if (asNumber(value) === undefined) {
      refuse(`${fileName}: its sampling rate is stated as '${value}'; expected a number of Hz`);
    }
    stated.rate = asNumber(value);
  } else if (key?.toLowerCase() === "labels" && value) {
    stated.labels = value.split(/[,;\t]/).map(label => label.trim());
  }
}

const separatorOf = line => [";", "\t", ","].find(mark => line.includes(mark)) ?? null;
const cellsOf = (line, separator) => (separator === null ? line.trim().split(/\s+/) : line.split(separator))
  .map(cell => cell.trim().replace(/^['"\ufeff]+|['"]+$/g, "").trim());

function asNumber(cell) {
  cell = cell.replace(/^\u2212/, "-");
  if (/^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(cell)) return Number(cell);
  if (EMPTY.has(cell.toLowerCase())) return NaN;
  return /^[+-]?inf(inity)?$/i.test(cell) ? (cell[0] === "-" ? -Infinity : Infinity) : undefined;
}

function isRow(cells) {
  const values = cells.map(cell => asNumber(cell.replace(",", ".")));
  return values.every(value => value !== undefined) && values.some(value => !Number.isNaN(value));
}

/** The columns' names of the rows above the numbers, with units where a row of them follows. */
function titlesAbove(above, count) {
  const rows = above.filter(row => row.length === count), last = rows.at(-1);
  const isUnit = cell => UNIT_WORDS.has(bare(cell).toLowerCase()) || inMillivolts(bare(cell)) !== null;
  if (rows.length > 1 && last.every(isUnit)) {
    return rows.at(-2).map((title, k) => inMillivolts(bare(last[k])) === null ? title : `${title} (${bare(last[k])})`);
  }
  return last && !last.every(cell => cell === "") ? last : null;
}

const bare = cell => cell.replace(/^[([]+|[)\]]+$/g, "");

function asChannels(name, titles, columns, rate) {
  const split = titles.map(title => {
    const patterns = [/^(.*\S)\s*[([]([^()[\]]+)[)\]]$/, /^(.*?\S)(?:\s+in\s+|\s*[_/,]\s*|\s+)(\S{2,})$/];
    const match = patterns.map(pattern => pattern.exec(title ?? "")).find(found => found && inMillivolts(found[2]) !== null);
    return match ? [match[1], match[2]] : [title, null];
  });
  let names = split.map(([title]) => title);
  const isTime = names.map(title => title !== null && otherSignal(title, null) === "time");
  const numbered = names.filter((_, k) => !isTime[k]);
  if (numbered.length && [0, 1].some(from => numbered.every((title, k) => title === String(from + k)))) {
    names = names.map((title, k) => isTime[k] ? title : null);
  }
  const column = isTime.findIndex((beside, k) => beside && columns[k].length > 1 && columns[k].every(Number.isFinite));
  if (column >= 0) {
    const ofTime = rateOfTimes(name, columns[column], titles[column]);
    if (rate !== null && ofTime !== null && !isSameRate(ofTime, rate)) {
      refuse(`${name} states ${short(rate)} Hz, but its column of time ${short(ofTime)} Hz`);
    }
    rate ??= ofTime;
  }
  // what converters write where they have no sample
  const signals = columns.map(column => column.map(value => value === -(2 ** 15) || value === -(2 ** 31) ? NaN : value));
  return { name, notes: [], names, units: split.map(([, unit]) => unit), rates: names.map(() => rate), signals };
}

const SECONDS_OF = {
  s: 1, sec: 1, second: 1, seconds: 1, ms: 1e-3, msec: 1e-3, milliseconds: 1e-3, us: 1e-6, "\u00b5s": 1e-6,
  "\u03bcs": 1e-6, microseconds: 1e-6, ns: 1e-9, nanoseconds: 1e-9,
};

/** Hz, by a column of time that runs evenly; null where it counts rows, or stands still. */
function rateOfTimes(name, times, title) {
  const usual = (times.at(-1) - times[0]) / (times.length - 1), where = `${name}: its column '${title}'`;
  let least = Infinity, most = -Infinity;
  for (let k = 1; k < times.length; k++) {
    least = Math.min(least, times[k] - times[k - 1]);
    most = Math.max(most, times[k] - times[k - 1]);
  }
  if (least === 0 && most === 0) return null;
  if (least < 0) refuse(`${where} does not run forwards`);
  // times are rounded, often to milliseconds
  const rounding = [...Array(10).keys()].map(k => 10 ** -k)
    .find(unit => times.every(time => Math.abs(time / unit - Math.round(time / unit)) < 1e-3)) ?? 0;
  if (least <= 0 || most > 1.5 * usual + rounding) refuse(`${where} does not run evenly; ${PYTHON}`);
  const unit = /[\s_([]([a-z\u00b5\u03bc]+)[)\]]?$/.exec(title.toLowerCase())?.[1];
  let seconds = SECONDS_OF[unit] ?? null;
  const countsRows = /^(|#|.*(INDEX|SAMPLE|ROW|FRAME|UNNAMED).*)$/.test(title.toUpperCase());
  if (seconds === null && (countsRows || Math.abs(usual - 1) < 1e-9)) return null;
  // of seconds, milli-, micro- and nanoseconds the one that makes it an ECG's rate
  seconds ??= [1, 1e-3, 1e-6, 1e-9].find(unit => usual * unit > 2e-5 && usual * unit <= 0.025) ?? null;
  if (seconds === null) return null;
  const rate = 1 / (usual * seconds), uncertainty = Math.max(1e-6, 2 * rounding / (times.at(-1) - times[0]));
  return Math.abs(rate - Math.round(rate)) <= rate * uncertainty ? Math.round(rate) : rate;
}

/** UTF-8, UTF-16 with a mark, else Latin-1, in which old devices write their microvolts. */
function decoded(bytes) {
  if (bytes[0] === 0xff && bytes[1] === 0xfe) return new TextDecoder("utf-16le").decode(bytes);
  if (bytes[0] === 0xfe && bytes[1] === 0xff) return new TextDecoder("utf-16be").decode(bytes);
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    return text(bytes);
  }
}

// -- what all formats share: rate, names, units, which channels are ECG ------------------------------------------------

const short = number => String(Number(number.toPrecision(6)));
const isSameRate = (stated, given) => Math.abs(stated - given) < 0.01 * stated;

function settleRate(channels, given) {
  const { name, rates } = channels;
  if (given !== undefined && !(given > 0 && given < Infinity)) {
    refuse(`${name}: the sampling rate given is ${given}; expected a number of Hz above 0`);
  }
  if (rates.includes(null)) {
    if (given === undefined) refuse(`${name} does not state its sampling rate; give it below, in Hz`);
    channels.rates = rates.map(() => given);
  } else if (!rates.every(rate => rate > 0 && rate < Infinity)) {
    refuse(`${name} states a sampling rate of ${short(rates[0])}; expected a number of Hz above 0`);
  } else if (given !== undefined && !rates.some(rate => isSameRate(rate, given))) {
    refuse(`${name}: the sampling rate given is ${short(given)}, but it states ${short(rates[0])} Hz`);
  }
}

function requireLimits({ name, rates, signals }) {
  rates.forEach((rate, k) => {
    if (signals[k].length === 0) refuse(`${name} holds no samples`);
    if (signals[k].length / rate > MOST_SECONDS) {
      refuse(`${name} lasts longer than ${MOST_SECONDS / 3600} h, the most that this page reads; ${PYTHON}`);
    }
  });
}

function settleNames(channels, unnamedLeads) {
  const { name, names } = channels;
  const signals = names.map((_, k) => k)
    .filter(k => names[k] === null || otherSignal(names[k], null) !== "time");
  if (signals.some(k => names[k] !== null)) {
    const held = signals.map(k => (names[k] ?? "").trim().toUpperCase());
    if (!held.every((title, k) => title === `V${k + 1}`)) return { names, notes: [], namesAreStated: true };
    if (held.length > 6) {
      refuse(`${name} names its ${held.length} channels V1 to V${held.length}, as R names columns that have no name`);
    }
    const note = `${held.join(", ")} taken for chest leads, though R names columns without a name so`;
    return { names, notes: [note], namesAreStated: true };
  }
  const usual = [unnamedLeads, STANDARD_LEADS].find(leads => leads.length === signals.length);
  if (!usual) {
    const many = signals.length === 1 ? "1 channel" : `${signals.length} channels`;
    refuse(`${name} has ${many} without a name; name the lead of each in its first row`);
  }
  const filled = [...names];
  signals.forEach((k, place) => { filled[k] = usual[place]; });
  return { names: filled, notes: [`channels without names taken as ${usual.join(", ")}`], namesAreStated: false };
}

function settleUnits(channels, given) {
  channels.units = channels.units.map(unit => unit !== null && NO_UNIT.has(unit.trim().toLowerCase()) ? null : unit);
  if (given === undefined) return;
  channels.units = channels.units.map(stated => {
    const voltage = stated === null ? null : inMillivolts(stated);
    if (voltage !== null && voltage !== inMillivolts(given)) {
      refuse(`${channels.name}: the unit given is ${given}, but the recording states ${stated}`);
    }
    return stated ?? given;
  });
}

// millivolts by prefix; micro as the sign of Latin-1, as the Greek letter, as DOS had it (read as Latin-1), as UTF-8
// read as Latin-1, and as it is typed
const MILLIVOLTS = new Map([
  ["m", 1], ["milli", 1], ["", 1e3], ["n", 1e-6], ["nano", 1e-6],
  ...["u", "\u00b5", "\u03bc", "\u00e6", "\u00e2\u00b5", "\u00ee\u00bc", "mc", "micro", "&micro;"].map(unit => [unit, 1e-3]),
]);
const PREFIXES = [...MILLIVOLTS.keys()].sort((a, b) => b.length - a.length).join("|");
const VOLTAGE = new RegExp(String.raw`^((?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)?[\s*]*(${PREFIXES})[\s_-]?v(?:olts?)?$`);
// how files write that they do not know a unit
const NO_UNIT = new Set(["", "?", "n/a", "na", "none", "nan", "null", "unknown", "-", "--"]);

/** Millivolts that one of a unit ("mV", "micro-volts", "10 uV") is; null if it is no voltage. */
function inMillivolts(unit) {
  const match = VOLTAGE.exec(unit.trim().replace(/^['"()[\]]+|['"()[\]]+$/g, "").trim().toLowerCase());
  const count = Number(match?.[1] ?? 1);
  return match && count > 0 && count < Infinity ? count * MILLIVOLTS.get(match[2]) : null;
}

const MODIFIED_LEADS = { MLI: "I", MLII: "II", MLIII: "III" };
for (let k = 1; k <= 6; k++) MODIFIED_LEADS[`MCL${k}`] = `V${k}`;
const LEAD_OF = new Map([
  ...[...STANDARD_LEADS, "V", "V7", "V8", "V9", "V3R", "V4R", "VX", "VY", "VZ"].map(lead => [lead.toUpperCase(), lead]),
  ["DI", "I"], ["DII", "II"], ["DIII", "III"], ["D1", "I"], ["D2", "II"], ["D3", "III"],
  ["LI", "I"], ["LII", "II"], ["LIII", "III"],
  ...Object.entries(MODIFIED_LEADS),
]);

/** The lead that a channel's name means: "avr", "ECG lead AVR", "ekg_aVR" are aVR, "MLII" is II; else null. */
export function leadName(name) {
  const upper = name.trim().replace(/^['"]+|['"]+$/g, "").toUpperCase();
  const plain = upper.replace(/^((MDC|ECG|EKG|LEAD|ABLEITUNG|DERIVATION)(-|[\s_:.]+))+/, "")
    .replace(/\s*(\((EINTHOVEN|GOLDBERGER|WILSON)\)|, AUGMENTED VOLTAGE, (RIGHT|LEFT|FOOT))$/, "")
    .replace(/[\s_-]+LEAD$|^LEAD(?=[IAV])|^E[CK]G(?=[AV])/g, "")
    .replace(/^(A?V)[\s_-](?=[RLF]$|[1-9]R?$)|^V0(?=[1-9]$)/g, (_, letters) => letters ?? "V");
  return LEAD_OF.get(plain) ?? null;
}

// what else is recorded beside an ECG, by the names that monitors and polysomnographs write
const OTHER_SIGNALS = [
  ["PPG", "PLETH.*|PPG.*"],
  ["blood pressure", "ABP.*|ART.*|PAP.*|CVP.*|ICP.*|N?I?BP.*|UAP|UVP|LAP|RAP"],
  ["respiration", "RESP.*|FLOW|THOR.*|ABDO.*|CHEST|CO2|ETCO2"],
  ["EEG", String.raw`EEG.*|(FP|AF|F|FC|FT|C|CP|T|TP|P|PO|O|A|M)(Z|\d{1,2})([ :\-].*)?`],
  ["EMG", "EMG.*|CHIN.*|LEG.*"],
  ["EOG", "EOG.*|LOC|ROC"],
  ["vital sign", "HR|PULSE|SPO2|SAO2|TEMP.*"],
  ["time", String.raw`T([ _(\[].*)?|([A-Z0-9]+[ _])?TIME.*|DATE.*|ELAPSED.*|SEC(OND)?S?|MS|INDEX|SAMPLE.*|UNNAMED.*|#|`],
].map(([kind, pattern]) => [kind, new RegExp(`^(?:${pattern})$`)]);

/** What a channel holds when it is not ECG, by its name, then by a unit that is no voltage; null if it may be ECG. */
function otherSignal(name, unit) {
  const upper = name.trim().replace(/^['"]+|['"]+$/g, "").toUpperCase();
  const kind = OTHER_SIGNALS.find(([, pattern]) => pattern.test(upper))?.[0];
  return kind ?? (unit !== null && inMillivolts(unit) === null ? `in ${unit}` : null);
}

/** Places, leads and millivolts per unit of the channels that are ECG; notes on those that are not. */
function chooseLeads(channels, names) {
  const places = [], leads = [], factors = [], notes = [], refused = [], unknown = [];
  names.forEach((name, place) => {
    const unit = channels.units[place], lead = leadName(name), kind = otherSignal(name, unit);
    if (kind === `in ${unit}` || (lead === null && kind !== null)) refused.push(`${name} (${kind})`);
    else if (lead === null) unknown.push(`'${name}'`);
    else if (leads.includes(lead)) notes.push(`a second channel for lead ${lead} left out`);
    else {
      if (MODIFIED_LEADS[name.toUpperCase().trim()]) notes.push(`${name} taken as ${lead}`);
      places.push(place);
      leads.push(lead);
      factors.push(unit === null ? 1 : inMillivolts(unit));
    }
  });
  if (!places.length) {
    const found = refused.length ? [`it has ${refused.join(", ")}`] : [];
    if (unknown.length) found.push(`it has ${unknown.join(", ")}, no lead's name`);
    refuse(`${channels.name} holds no known ECG lead; ${found.join("; ") || "it has no other channels"}`);
  }
  if (refused.length + unknown.length) notes.push(`channels left out: ${[...refused, ...unknown].join(", ")}`);
  const doubt = requireMillivolts(channels, places, leads);
  return { places, leads, factors, notes, doubt };
}

/** Whether a standard deviation can be that of an ECG in mV, of a flat line too. */
export const canBeMillivolts = spread => spread < 1e-6 || (spread > 0.005 && spread < 10);

/** Values without a unit are millivolts only if they can be; a doubt where they hardly are. */
function requireMillivolts({ name, units, rates, signals }, places, leads) {
  const unstated = places.map((place, k) => ({ place, lead: leads[k] })).filter(({ place }) => units[place] === null);
  const looked = unstated.map(({ place, lead }) => {
    const row = signals[place].subarray(0, 200_000).filter(Number.isFinite);
    const pieces = Math.max(1, Math.round(row.length / rates[place] / 10));
    const heights = Array.from({ length: pieces }, (_, k) => height(
      row.subarray(Math.round(k * row.length / pieces), Math.round((k + 1) * row.length / pieces))));
    return { lead, row, spread: deviation(row), height: median(heights) };
  }).filter(({ row }) => row.length && height(row) > 0);
  if (!looked.length) return null;
  const hint = "give its unit below (mV, uV, V, nV)";
  if (looked.every(({ row }) => height(row) > 2 && row.every(Number.isInteger))) {
    refuse(`${name} states no unit, and its values are whole numbers, as a converter counts; ${hint}`);
  }
  const isAlone = unstated.length < places.length, most = Math.max(...looked.map(({ spread }) => spread));
  const wrong = looked.find(({ spread }) => !canBeMillivolts(spread) && (isAlone || spread === most));
  if (wrong) {
    const of = isAlone ? ` for ${wrong.lead}` : "";
    refuse(`${name} states no unit${of}, and a spread of ${wrong.spread.toPrecision(3)} is not that of an ECG in mV; ${hint}`);
  }
  const tall = median(looked.map(({ height }) => height));
  if (tall > 15) {
    refuse(`${name} states no unit, and a height of ${tall.toPrecision(3)} is not that of an ECG in mV; ${hint}`);
  }
  return tall > 8 ? `it states no unit, and a height of ${tall.toPrecision(3)} is much for mV; ${hint}` : null;
}

export function height(row) {
  let least = Infinity, most = -Infinity;
  for (const value of row) {
    if (value < least) least = value;
    if (value > most) most = value;
  }
  return row.length ? most - least : 0;
}

export function deviation(row) {
  const mean = row.reduce((sum, value) => sum + value, 0) / row.length;
  return Math.sqrt(row.reduce((sum, value) => sum + (value - mean) ** 2, 0) / row.length);
}

export function median(values) {
  const sorted = [...values].sort((a, b) => a - b), half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

/** The chosen channels in millivolts, at one rate: a channel may be sampled at a multiple of the others'. */
function assemble(channels, { places, leads, factors, doubt }, notes, namesAreStated) {
  const { name, rates, signals } = channels;
  const rate = Math.min(...places.map(place => rates[place]));
  if (rate < LEAST_RATE || rate > MOST_RATE) {
    refuse(`${name}: its sampling rate is ${short(rate)} Hz; expected ${LEAST_RATE} to ${MOST_RATE} Hz`);
  }
  const multiples = places.map(place => Math.round(rates[place] / rate));
  if (places.some((place, k) => Math.abs(rates[place] / rate - multiples[k]) > 1e-6)) {
    const listed = leads.map((lead, k) => `${lead} ${short(rates[places[k]])} Hz`).join(", ");
    refuse(`${name}: the leads have unrelated sampling rates (${listed}); expected one rate`);
  }
  const samples = Math.min(...places.map((place, k) => Math.floor(signals[place].length / multiples[k])));
  const signal = places.map((place, k) => Float32Array.from({ length: samples }, (_, at) => {
    let sum = 0;
    for (let i = 0; i < multiples[k]; i++) sum += signals[place][at * multiples[k] + i];
    return sum / multiples[k] * factors[k];
  }));
  signal.forEach((row, k) => {
    const at = row.findIndex(value => value === Infinity || value === -Infinity);
    if (at >= 0) refuse(`${name}: lead ${leads[k]} holds an infinite value at ${(at / rate).toFixed(3)} s`);
  });
  return { name, leads, rate, signal, notes, doubt, namesAreStated };
}
