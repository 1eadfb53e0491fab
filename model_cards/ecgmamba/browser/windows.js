// A recording in millivolts -> the windows that the network reads, as hf_ecgmamba's feature extractor makes them:
// gaps filled, missing limb leads computed, resampled, cut, normalised; and whether each looks like an ECG at all.

import { Refusal, canBeMillivolts, deviation, groupedBy, height, median } from "./recording.js";

const SHORTEST_SECONDS = 0.5;
const FLAT = 1e-6;              // millivolts
// millivolts that the middle lead rises or falls by within 30 ms, but for 1 % of the time
const LEAST_STEP = 0.06, MOST_STEP = 5, USUAL_STEPS = [0.15, 4];
const MOST_MISFIT = 0.7;        // of a limb lead from what the others make it, as a share of itself
const LEAST_CORRELATION = -0.6; // of I with V6, below which the arms are suspected
const FILTER_PERIODS = 16;

// limb leads from one another (Einthoven 1913, Goldberger 1942), each from leads that stand before it
const LIMB_LEADS = {
  I: { II: 1, III: -1 }, II: { I: 1, III: 1 }, III: { II: 1, I: -1 },
  aVR: { I: -0.5, II: -0.5 }, aVL: { I: 1, II: -0.5 }, aVF: { II: 1, I: -0.5 },
};
// each as shares of I and II
const SHARES = { I: [1, 0], II: [0, 1], III: [-1, 1], aVR: [-0.5, -0.5], aVL: [1, -0.5], aVF: [-0.5, 1] };

/**
 * recording: of readRecording. model: what model.json holds (leads, optional_leads, sampling_rate, window_seconds,
 * window_overlap, max_gap_seconds, reading.normalization).
 *
 * Returns {windows, numWindows, notes}. A window is {start, end (seconds), values (Float32Array [leads x size]), real
 * (how many of its samples are the recording's), present (which leads are there), notes, doubt (null, or {reason,
 * ofAll})}; those with a gap too long to fill are left out of a recording of several. Throws a Refusal.
 */
export function cutWindows(recording, model) {
  const { name, leads, rate } = recording, samples = recording.signal[0].length, duration = samples / rate;
  if (duration < SHORTEST_SECONDS) {
    throw new Refusal(`${name} lasts ${duration.toFixed(3)} s; expected at least ${SHORTEST_SECONDS} s`);
  }
  const { signal: filled, gaps } = fillGaps(recording, model.max_gap_seconds);
  const [up, down] = fraction(model.sampling_rate / rate), length = Math.ceil(samples * up / down);
  const ofAll = mixture(model.leads, leads, new Set());
  requireLeads(recording, model, ofAll);
  requireOneTime(recording, gaps);

  // as if cut from the whole, for each set of leads that some windows lack
  const known = new Map();
  function mixed(lacking) {
    const key = [...lacking].sort().join();
    if (!known.has(key)) {
      const shares = lacking.size ? mixture(model.leads, leads, lacking) : ofAll;
      const own = shares.map(row => combine(row, filled, samples));
      known.set(key, { shares, own, resampled: own.map(row => resample(row, up, down, length)) });
    }
    return known.get(key);
  }

  const size = roundHalfEven(model.window_seconds * model.sampling_rate);
  const starts = windowStarts(length, size, model.window_overlap), ownRate = rate * up / down;
  const windows = [];
  for (const first of starts) {
    const last = Math.min(first + size, length), start = first / ownRate, end = Math.min(last / ownRate, duration);
    const long = gaps.filter(gap => gap.isLong && gap.start < end && gap.end > start
      && ofAll.some(row => row?.[gap.row]));
    const lacking = new Set(long.map(gap => gap.row)), { shares, own, resampled } = mixed(lacking);
    if (!isEnough(model, shares)) {
      if (starts.length > 1) continue;
      throw new Refusal(`${name}: lead ${leads[long[0].row]} has no samples from ${long[0].start.toFixed(2)} to `
        + `${long[0].end.toFixed(2)} s; gaps of up to ${model.max_gap_seconds} s are filled`);
    }
    const present = shares.map(row => row !== null), notes = [...lacking].map(row => `lead ${leads[row]}: a long gap, `
      + (shares[model.leads.indexOf(leads[row])] ? "computed from the other limb leads" : "masked"));
    const from = Math.floor(first * down / up), to = Math.ceil(last * down / up);
    const looked = lookAt(recording, model.leads, present, own.map(row => row.subarray(from, to)), from, to);
    const cut = resampled.map((row, k) => present[k] ? row.slice(first, last) : new Float32Array(last - first));
    windows.push({
      start, end, real: last - first, present, notes: [...notes, ...looked.notes], doubt: looked.doubt,
      values: padded(normalized(cut, present, model.reading.normalization), size),
    });
  }
  if (!windows.length) throw new Refusal(`${name}: each of its ${starts.length} windows has a gap too long to fill`);
  return { windows, numWindows: starts.length, notes: notesOnLeads(recording, model, ofAll, gaps) };
}

/** Where windows begin; the last one ends with the recording, so that no second is lost. */
export function windowStarts(length, size, overlap) {
  const step = Math.max(1, roundHalfEven(size * (1 - overlap))), starts = [];
  for (let start = 0; start <= Math.max(length - size, 0); start += step) starts.push(start);
  if (starts.at(-1) + size < length) starts.push(length - size);
  return starts;
}

const roundHalfEven = value => value % 1 === 0.5 ? 2 * Math.round(value / 2) : Math.round(value);

// -- leads -----------------------------------------------------------------------------------------------------------

/** For each of the model's leads its shares of the file's, without some of them; null for one that is not there. */
function mixture(wanted, held, without) {
  const rows = new Map();
  held.forEach((lead, row) => { if (!without.has(row)) rows.set(lead, held.map((_, k) => k === row ? 1 : 0)); });
  for (const [lead, recipe] of Object.entries(LIMB_LEADS)) {
    if (rows.has(lead) || !Object.keys(recipe).every(other => rows.has(other))) continue;
    rows.set(lead, held.map((_, k) => Object.entries(recipe).reduce((sum, [other, share]) => sum + share * rows.get(other)[k], 0)));
  }
  return wanted.map(lead => rows.get(lead) ?? null);
}

function combine(shares, signal, samples) {
  const out = new Float32Array(samples);
  (shares ?? []).forEach((share, row) => {
    if (share) for (let k = 0; k < samples; k++) out[k] += share * signal[row][k];
  });
  return out;
}

const isEnough = (model, shares) => shares.some(row => row !== null)
  && model.leads.every((lead, k) => shares[k] !== null || model.optional_leads.includes(lead));

function requireLeads({ name, leads }, model, shares) {
  if (isEnough(model, shares)) return;
  const absent = model.leads.filter((_, k) => shares[k] === null);
  const needed = absent.filter(lead => !model.optional_leads.includes(lead));
  const missing = (needed.length ? needed : absent).join(", ");
  throw new Refusal(`${name} has the leads ${leads.join(", ")}; the model also needs ${missing}`);
}

/** A page of paper, digitised, shows its leads one after another; reading it lead by lead is left to Python. */
function requireOneTime({ name, leads }, gaps) {
  const ofRow = groupedBy(gaps.filter(gap => gap.isLong), gap => gap.row);
  const spans = new Set([...ofRow.values()].map(list => list.map(gap => `${gap.start} ${gap.end}`).join()));
  if (2 * ofRow.size > leads.length && spans.size > 1) {
    throw new Refusal(`${name} holds its leads at different times, as a page of paper; the Python package reads it`);
  }
}

function notesOnLeads(recording, model, shares, gaps) {
  const { leads, notes } = recording;
  const computed = model.leads.filter((lead, k) => shares[k] !== null && !leads.includes(lead));
  const absent = model.leads.filter((_, k) => shares[k] === null);
  const unused = leads.filter((_, row) => !shares.some(share => share?.[row]));
  const short = gaps.filter(gap => !gap.isLong && !unused.includes(leads[gap.row])).length;
  const said = [["computed from the other limb leads", computed], ["absent", absent], ["not used", unused]];
  const filled = short ? [`${short} gap${short > 1 ? "s" : ""} filled by interpolation`] : [];
  return [...notes, ...said.filter(([, of]) => of.length).map(([what, of]) => `${what}: ${of.join(", ")}`), ...filled];
}

// -- gaps ------------------------------------------------------------------------------------------------------------

/** NaN interpolated (continued at an end, zero in a lead without any sample), and where that was, in seconds. */
function fillGaps({ signal, rate }, mostSeconds) {
  const gaps = [];
  const filled = signal.map((row, index) => {
    if (!row.some(Number.isNaN)) return row;
    const out = row.slice();
    for (let first = 0; first < row.length; first++) {
      if (!Number.isNaN(row[first])) continue;
      let last = first;
      while (last < row.length && Number.isNaN(row[last])) last++;
      const before = row[first - 1] ?? row[last] ?? 0, after = row[last] ?? before;
      for (let k = first; k < last; k++) out[k] = before + (after - before) * (k - first + 1) / (last - first + 1);
      const start = first / rate, end = last / rate;
      gaps.push({ row: index, start, end, isLong: end - start > mostSeconds + 1e-9 });
      first = last;
    }
    return out;
  });
  return { signal: filled, gaps };
}

// -- resampling ------------------------------------------------------------------------------------------------------

/** Up and down factors: the nearest fraction with a denominator up to 2000, by Stern's and Brocot's continued one. */
export function fraction(ratio, mostDenominator = 2000n) {
  let scale = 1n;
  while (!Number.isInteger(ratio)) { ratio *= 2; scale *= 2n; }
  let [numerator, denominator] = [BigInt(ratio), scale];
  const target = [numerator, denominator];
  let [p0, q0, p1, q1] = [0n, 1n, 1n, 0n];
  while (true) {
    const whole = numerator / denominator, q2 = q0 + whole * q1;
    if (q2 > mostDenominator) break;
    [p0, q0, p1, q1] = [p1, q1, p0 + whole * p1, q2];
    [numerator, denominator] = [denominator, numerator - whole * denominator];
    if (denominator === 0n) return [Number(p1), Number(q1)];
  }
  const k = (mostDenominator - q0) / q1, other = [p0 + k * p1, q0 + k * q1];
  const distance = ([p, q]) => { const d = p * target[1] - target[0] * q; return d < 0n ? -d : d; };
  const isNearer = distance([p1, q1]) * other[1] <= distance(other) * q1;
  return (isNearer ? [p1, q1] : other).map(Number);
}

const filters = new Map();

/** Low pass at 0.9 of the lower Nyquist frequency, a sinc under a Kaiser window (beta 5). */
function resamplingFilter(up, down) {
  const key = `${up}/${down}`;
  if (filters.has(key)) return filters.get(key);
  const half = FILTER_PERIODS * Math.max(up, down), cutoff = 0.9 / Math.max(up, down);
  const taps = Float64Array.from({ length: 2 * half + 1 }, (_, k) => {
    const at = k - half, angle = Math.PI * cutoff * at;
    return (at ? Math.sin(angle) / angle : 1) * besselI0(5 * Math.sqrt(1 - (at / half) ** 2));
  });
  const sum = taps.reduce((total, tap) => total + tap, 0);
  filters.set(key, taps.map(tap => tap / sum * up));
  return filters.get(key);
}

function besselI0(x) {
  let term = 1, sum = 1;
  for (let k = 1; term > 1e-17 * sum; k++) sum += term *= (x / (2 * k)) ** 2;
  return sum;
}

/** `length` samples at up / down times the rate, polyphase, without a shift in time; the ends continue their value. */
export function resample(row, up, down, length) {
  if (up === down) return row.slice(0, length);
  const taps = resamplingFilter(up, down), half = (taps.length - 1) / 2, last = row.length - 1;
  return Float32Array.from({ length }, (_, k) => {
    const centre = k * down + half;
    let sum = 0;
    for (let n = Math.ceil((k * down - half) / up); n * up <= centre; n++) {
      sum += row[n < 0 ? 0 : n > last ? last : n] * taps[centre - n * up];
    }
    return sum;
  });
}

// -- normalisation ---------------------------------------------------------------------------------------------------

function normalized(rows, present, kind) {
  if (kind === "none") return rows;
  const centred = rows.map(row => {
    const mean = Math.fround(row.reduce((sum, value) => sum + value, 0) / row.length);
    return row.map(value => value - mean);
  });
  if (kind === "mean") return centred;
  const powers = centred.map(row => row.reduce((sum, value) => sum + value * value, 0) / row.length);
  const there = powers.filter((_, k) => present[k]);
  const common = there.reduce((sum, power) => sum + power, 0) / Math.max(there.length, 1);
  return centred.map((row, k) => {
    const size = Math.sqrt(kind === "per_record" ? common : powers[k]);
    return size < FLAT ? row : row.map(value => value / size);
  });
}

function padded(rows, size) {
  const values = new Float32Array(rows.length * size);
  rows.forEach((row, k) => values.set(row, k * size));
  return values;
}

// -- whether it is an ECG --------------------------------------------------------------------------------------------

function lookAt(recording, modelLeads, present, own, from, to) {
  const there = modelLeads.map((_, k) => k).filter(k => present[k]), notes = [];
  const flat = there.filter(k => height(own[k]) < FLAT);
  if (flat.length === there.length) {
    return { notes, doubt: { reason: recording.doubt ?? "every lead is flat: there is no ECG in it", ofAll: !!recording.doubt } };
  }
  if (flat.length) notes.push(`flat: ${flat.map(k => modelLeads[k]).join(", ")}`);
  if (recording.doubt) return { notes, doubt: { reason: recording.doubt, ofAll: true } };
  if (!canBeMillivolts(Math.max(...there.map(k => deviation(own[k]))))) {
    return { notes, doubt: { reason: "its amplitudes are not those of an ECG in mV: is the unit right?", ofAll: false } };
  }
  const beating = there.filter(k => !flat.includes(k)).map(k => own[k]), tall = median(beating.map(height));
  if (!(4 * USUAL_STEPS[0] < tall && tall < USUAL_STEPS[1])) {
    const step = middleStep(beating, recording.rate);
    const text = much => `its leads rise by ${step.toPrecision(2)} mV within 30 ms, ${much} for an ECG: is the unit right?`;
    if (!(LEAST_STEP < step && step < MOST_STEP)) {
      return { notes, doubt: { reason: text(step > 1 ? "too much" : "too little"), ofAll: false } };
    }
    if (!(USUAL_STEPS[0] < step && step < USUAL_STEPS[1])) notes.push(text(step > 1 ? "much" : "little"));
  }
  if (!recording.namesAreStated) return { notes, doubt: null };
  const part = recording.signal.map(row => row.subarray(from, to));
  const correlation = correlationOf(part, recording.leads, "I", "V6", recording.rate);
  if (correlation < LEAST_CORRELATION) {
    notes.push("lead I runs against V6: are the left and right arm electrodes exchanged?");
  }
  const reason = limbLeadDoubt(part, recording.leads);
  return { notes, doubt: reason && { reason, ofAll: true } };
}

/** How much the middle lead rises within 30 ms: steep beats, which a wandering baseline does not change. */
function middleStep(rows, rate) {
  const width = Math.max(1, Math.round(rate / 100)), lag = Math.max(1, Math.round(0.03 * rate / width));
  const rises = rows.map(row => {
    const means = Float64Array.from({ length: Math.floor(row.length / width) },
      (_, k) => row.subarray(k * width, (k + 1) * width).reduce((sum, value) => sum + value, 0) / width);
    const sorted = means.subarray(lag).map((value, k) => Math.abs(value - means[k])).sort();
    const at = 0.99 * (sorted.length - 1), low = Math.floor(at), high = Math.ceil(at);
    return sorted.length ? sorted[low] + (sorted[high] - sorted[low]) * (at - low) : 0;
  });
  return median(rises);
}

/** How far the limb leads contradict one another, of the lead that does most; null for those that fit. */
export function limbLeadDoubt(signal, leads) {
  let rows = Object.keys(SHARES).filter(lead => leads.includes(lead)).map(lead => ({ lead, row: signal[leads.indexOf(lead)] }));
  if (rows.some(({ row }) => row.some(Number.isNaN))) { // those samples count that all leads have
    rows = rows.filter(({ row }) => row.filter(Number.isFinite).length >= row.length / 2);
    const whole = (rows[0]?.row ?? []).map((_, k) => rows.every(({ row }) => Number.isFinite(row[k])));
    rows = rows.map(({ lead, row }) => ({ lead, row: row.filter((_, k) => whole[k]) }));
    if (!rows.length || !rows[0].row.length) return null;
  }
  rows = rows.filter(({ row }) => height(row) > FLAT);
  if (rows.length < 3) return null;
  const centred = rows.map(({ lead, row }) => {
    const values = Float64Array.from(row), mean = values.reduce((sum, value) => sum + value, 0) / values.length;
    return { lead, values: values.map(value => value - mean) };
  });
  const size = values => Math.sqrt(values.reduce((sum, value) => sum + value * value, 0) / values.length);
  const [one, other, ...rest] = centred, [[a, b], [c, d]] = [SHARES[one.lead], SHARES[other.lead]];
  const all = Math.sqrt(centred.reduce((sum, { values }) => sum + size(values) ** 2, 0) / centred.length);
  let misfit = 0, worst = null;
  for (const { lead, values } of rest) {
    const [x, y] = SHARES[lead], determinant = a * d - b * c;
    const first = (x * d - y * c) / determinant, second = (y * a - x * b) / determinant;
    const away = size(values.map((value, k) => value - first * one.values[k] - second * other.values[k]))
      / Math.max(size(values), 0.05 * all, FLAT);
    if (away > misfit) [misfit, worst] = [away, lead];
  }
  if (misfit <= MOST_MISFIT) return null;
  return `the limb leads contradict one another: ${worst} is ${misfit.toFixed(1)} times its own size away from what `
    + `${one.lead} and ${other.lead} make it; is a lead swapped, inverted or in another unit?`;
}

/** Of two leads' steps over 10 ms, which beats dominate and a wandering baseline does not. */
function correlationOf(signal, leads, one, other, rate) {
  if (!leads.includes(one) || !leads.includes(other)) return 0;
  const [x, y] = [signal[leads.indexOf(one)], signal[leads.indexOf(other)]], lag = Math.max(1, Math.round(rate / 100));
  let xy = 0, xx = 0, yy = 0;
  for (let k = lag; k < x.length; k++) {
    const [dx, dy] = [x[k] - x[k - lag], y[k] - y[k - lag]];
    xy += dx * dy; xx += dx * dx; yy += dy * dy;
  }
  const size = Math.sqrt(xx * yy);
  return size > FLAT ? xy / size : 0;
}
