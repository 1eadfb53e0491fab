// The page: files in, findings in words and the ECG on paper out. All of it happens in this tab.

import { Refusal, STANDARD_LEADS, readRecording } from "./recording.js";
import { cutWindows } from "./windows.js";

const BATCH = 8;                // windows that pass through the network at once
const MOST_SHOWN = 6;           // of the labels below their thresholds, where none is above
const get = id => document.getElementById(id);

const model = await (await fetch("model.json")).json();
const session = await startSession();
let chosen = null, shown = null; // files as they were chosen; what is on the page

get("said").textContent = "";
get("files").disabled = get("example").disabled = false;
get("about").textContent = `${model.name}: ${model.labels.length} labels, ${model.leads.length} leads, windows of `
  + `${model.window_seconds} s at ${model.sampling_rate} Hz.`;
document.documentElement.dataset.ready = "yes";

async function startSession() {
  try {
    const runtime = new URL(model.runtime, document.baseURI).href;
    const ort = await import(`${runtime}ort.wasm.bundle.min.mjs`);
    ort.env.wasm.wasmPaths = { wasm: `${runtime}ort-wasm-simd-threaded.wasm` };
    ort.env.wasm.numThreads = 1; // several need headers that a plain host of files does not send
    const file = await fetch("model.onnx");
    if (!file.ok) throw new Error(`model.onnx: ${file.status}`);
    return { ort, run: await ort.InferenceSession.create(new Uint8Array(await file.arrayBuffer())) };
  } catch (error) {
    get("said").textContent = "";
    tell(`The network could not be loaded (${error.message}).`);
    throw error;
  }
}

// -- from files to scores --------------------------------------------------------------------------------------------

/**
 * files: [{name, bytes}]; given: {rate, unit} where the file does not state them.
 * Returns {recording, findings, notes, refused} as the Python pipeline has them; a finding is {label, name, group,
 * score, threshold, present, at (the second at which its highest window begins)}. Throws a Refusal.
 */
export async function read(files, given = {}, onProgress = () => {}) {
  const recording = readRecording(files, { ...given, unnamedLeads: model.leads });
  const { windows, numWindows, notes } = cutWindows(recording, model);
  const scored = windows.filter(window => window.doubt === null), scores = [];
  for (let first = 0; first < scored.length; first += BATCH) {
    scores.push(...await score(scored.slice(first, first + BATCH)));
    onProgress(Math.min(first + BATCH, scored.length), scored.length);
    await new Promise(resolve => setTimeout(resolve)); // the page stays alive
  }
  const refused = refusal(windows);
  return {
    recording, refused, findings: refused === null ? pooled(scored, scores) : [],
    notes: [...notes, ...notesOf(windows, numWindows)],
  };
}

/** [windows][labels] of probabilities. */
async function score(windows) {
  const { ort, run } = session, [batch, leads] = [windows.length, model.leads.length];
  const size = windows[0].values.length / leads;
  const values = new Float32Array(batch * leads * size), real = new Uint8Array(batch * size);
  windows.forEach((window, k) => {
    values.set(window.values, k * leads * size);
    real.fill(1, k * size, k * size + window.real);
  });
  const { logits } = await run.run({
    input_values: new ort.Tensor("float32", values, [batch, leads, size]),
    attention_mask: new ort.Tensor("bool", real, [batch, size]),
    lead_mask: new ort.Tensor("bool", Uint8Array.from(windows.flatMap(window => window.present)), [batch, leads]),
  });
  const rows = windows.map((_, k) => [...logits.data.subarray(k * model.labels.length, (k + 1) * model.labels.length)]);
  if (model.problem_type === "multi_label_classification") return rows.map(row => row.map(x => 1 / (1 + Math.exp(-x))));
  return rows.map(row => {
    const most = Math.max(...row), powers = row.map(x => Math.exp(x - most));
    const sum = powers.reduce((total, power) => total + power, 0);
    return powers.map(power => power / sum);
  });
}

/** The windows' scores as the recording's: the highest or the mean, highest label first. */
function pooled(windows, scores) {
  const likeliest = pooling => pooling.reduce((best, value, k) => value > pooling[best] ? k : best, 0);
  const isMulti = model.problem_type === "multi_label_classification";
  const kind = model.window_pooling ?? (isMulti ? "max" : "mean");
  const columns = model.labels.map((_, k) => scores.map(row => row[k]));
  const ofAll = columns.map(column => kind === "max" ? Math.max(...column)
    : column.reduce((sum, value) => sum + value, 0) / column.length);
  const best = likeliest(ofAll);
  return model.labels.map((label, k) => ({
    label, name: model.words[k][0], group: model.words[k][1], score: ofAll[k],
    threshold: isMulti ? model.thresholds[k] : null,
    present: isMulti ? ofAll[k] >= model.thresholds[k] : k === best,
    at: windows[likeliest(columns[k])].start,
  })).sort((a, b) => b.score - a.score);
}

/** Why nothing is found in the recording: doubts in all windows, or of all of it in half of them; else null. */
function refusal(windows) {
  const doubts = windows.map(window => window.doubt).filter(doubt => doubt !== null);
  const ofAll = doubts.filter(doubt => doubt.ofAll);
  if (!doubts.length || (2 * ofAll.length < windows.length && doubts.length < windows.length)) return null;
  return (ofAll[0] ?? doubts[0]).reason;
}

function notesOf(windows, numWindows) {
  const notes = [], counted = new Map(), doubts = windows.filter(window => window.doubt !== null);
  for (const window of windows) {
    for (const note of window.notes) counted.set(note, [...(counted.get(note) ?? []), window.start]);
  }
  if (windows.length < numWindows) {
    notes.push(`left out: ${numWindows - windows.length} of ${numWindows} windows, for their gaps`);
  }
  if (doubts.length && numWindows > 1) {
    notes.push(`left out: ${doubts.length} of ${numWindows} windows, the first at ${clock(doubts[0].start)}: ${doubts[0].doubt.reason}`);
  }
  for (const [note, starts] of counted) {
    notes.push(numWindows === 1 ? note
      : `${note} (${starts.length} of ${numWindows} windows, the first at ${clock(starts[0])})`);
  }
  return notes;
}

// -- what the visitor does -------------------------------------------------------------------------------------------

get("files").addEventListener("change", event => open([...event.target.files]));
get("example").addEventListener("click", async () => {
  const bytes = new Uint8Array(await (await fetch("example.csv")).arrayBuffer());
  show([{ name: "example.csv", bytes }]);
});
const drop = get("drop");
for (const kind of ["dragenter", "dragover"]) {
  addEventListener(kind, event => { event.preventDefault(); drop.classList.add("over"); });
}
addEventListener("dragleave", event => { if (!event.relatedTarget) drop.classList.remove("over"); });
addEventListener("drop", event => {
  event.preventDefault();
  drop.classList.remove("over");
  if (event.dataTransfer.files.length) open([...event.dataTransfer.files]);
});
for (const id of ["rate", "unit"]) get(id).addEventListener("change", () => { if (chosen) show(chosen); });
get("gain").addEventListener("change", draw);
get("time").addEventListener("input", draw);
addEventListener("resize", draw);

async function open(files) {
  if (!files.length) return;
  const bytesOf = async file => ({ name: file.name, bytes: new Uint8Array(await file.arrayBuffer()) });
  show(await Promise.all(files.map(bytesOf)));
  get("files").value = ""; // the same file may be chosen again
}

let turn = 0;

async function show(files) {
  const mine = ++turn; // an answer that came too late is nobody's
  chosen = files;
  tell(null);
  get("said").textContent = "Reading …";
  await new Promise(resolve => setTimeout(resolve));
  const given = { rate: get("rate").value ? Number(get("rate").value) : undefined, unit: get("unit").value || undefined };
  const began = performance.now();
  try {
    const result = await read(files, given, (done, all) => {
      if (mine === turn && all > BATCH) get("said").textContent = `Reading … ${done} of ${all} windows`;
    });
    if (mine !== turn) return;
    get("said").textContent = `Read on this device in ${((performance.now() - began) / 1000).toFixed(2)} s.`;
    display(result);
  } catch (error) {
    if (mine !== turn) return;
    get("said").textContent = "";
    get("result").hidden = true;
    tell(error instanceof Refusal ? error.message : `The recording could not be read (${error.message}).`);
    if (!(error instanceof Refusal)) console.error(error);
  } finally {
    if (mine === turn) document.documentElement.dataset.answered = mine;
  }
}

function tell(reason) {
  get("refusal").hidden = reason === null;
  get("refusal").textContent = reason ?? "";
}

// -- what the page shows ---------------------------------------------------------------------------------------------

function display(result) {
  const { recording, findings, refused } = result;
  shown = { ...result, seconds: recording.signal[0].length / recording.rate };
  const present = findings.filter(finding => finding.present), rest = findings.filter(finding => !finding.present);
  const few = present.length ? present : findings.slice(0, MOST_SHOWN);
  const more = rest.filter(finding => !few.includes(finding));
  get("headline").textContent = refused !== null ? "No findings"
    : present.length === 0 ? "No finding above its threshold"
      : present.length === 1 ? "One finding" : `${present.length} findings`;
  get("facts").textContent = `${recording.name}: ${clock(shown.seconds, 1)}, ${Number(recording.rate.toPrecision(6))} Hz, `
    + `${recording.leads.length} lead${recording.leads.length > 1 ? "s" : ""}`;
  tell(refused);
  get("findings").replaceChildren(...few.map(entry));
  get("others").hidden = more.length === 0;
  get("others").open = false;
  get("others").querySelector("summary").textContent = `${more.length} more labels, below their thresholds`;
  get("others").querySelector("ul").replaceChildren(...more.map(entry));
  const notes = result.notes.length ? result.notes : ["read as it is: no lead, sample or unit had to be assumed"];
  get("notes").replaceChildren(...notes.map(note => element("li", { textContent: note })));
  get("result").hidden = false;
  get("time").value = 0;
  draw();
}

/** A label as a list item: its name, score, and a bar with the threshold as a tick. */
function entry({ label, name, group, score, threshold, present, at }) {
  const isCalm = group === "normal" || label === "SR";
  const item = element("li", { className: `finding${present ? " present" : ""}${isCalm ? " calm" : ""}` });
  const top = element("div", { className: "name" });
  top.append(element("b", { textContent: name }), element("span", { className: "score", textContent: percent(score) }));
  const small = element("small");
  small.append(element("span", { textContent: [label === name ? null : label, group].filter(Boolean).join(" · ") }));
  if (threshold !== null) small.append(element("span", { textContent: `threshold ${percent(threshold)}` }));
  if (present && shown.seconds > PAGE_SECONDS) {
    const button = element("button", { type: "button", textContent: `show ${clock(at)}` });
    button.setAttribute("aria-label", `Show ${name} at ${clock(at)}`);
    button.addEventListener("click", () => { get("time").value = at; draw(); get("scroll").focus(); });
    small.append(button);
  }
  item.append(top, bar(score, threshold), small);
  Object.assign(item.dataset, { label, score, present });
  return item;
}

function bar(score, threshold) {
  const picture = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const strip = (className, x, y, width, height) => {
    const part = document.createElementNS(picture.namespaceURI, "rect");
    for (const [key, value] of Object.entries({ class: className, x, y, width, height })) part.setAttribute(key, value);
    picture.append(part);
  };
  picture.setAttribute("class", "bar");
  picture.setAttribute("viewBox", "0 0 1000 12");
  picture.setAttribute("preserveAspectRatio", "none");
  picture.setAttribute("aria-hidden", "true"); // score and threshold stand beside it in words
  strip("all", 0, 3, 1000, 6);
  strip("of", 0, 3, 1000 * Math.min(Math.max(score, 0), 1), 6);
  if (threshold !== null) strip("threshold", Math.min(1000 * threshold, 994), 0, 6, 12);
  return picture;
}

const element = (kind, properties = {}) => Object.assign(document.createElement(kind), properties);
const percent = share => `${(100 * share).toFixed(1)} %`;

function clock(seconds, digits = 0) {
  if (seconds < 60) return `${seconds.toFixed(digits)} s`;
  const [minutes, rest] = [Math.floor(seconds / 60), Math.floor(seconds % 60)];
  const padded = part => String(part).padStart(2, "0");
  return minutes < 60 ? `${minutes}:${padded(rest)} min` : `${Math.floor(minutes / 60)}:${padded(minutes % 60)}:${padded(rest)} h`;
}

// -- the ECG on paper ------------------------------------------------------------------------------------------------

const CLASSIC = [["I", "aVR", "V1", "V4"], ["II", "aVL", "V2", "V5"], ["III", "aVF", "V3", "V6"]];
const SPEED = 25;               // millimetres a second
const PULSE = 12;               // millimetres at the left for the 1 mV pulse
const ROW = 24;                 // millimetres, at 10 mm/mV

const PAGE_SECONDS = 10;

function draw() {
  if (shown === null || get("result").hidden) return;
  const { recording, seconds } = shown, length = Math.min(PAGE_SECONDS, seconds), gain = Number(get("gain").value);
  const time = get("time"), latest = Math.max(0, seconds - length);
  time.max = latest;
  get("when").hidden = latest === 0;
  const start = Math.min(Number(time.value), latest);
  get("shown").textContent = `${clock(start)} to ${clock(start + length)}`;

  const isNarrow = get("scroll").clientWidth < 640;
  const strips = layOut(recording.leads, length, isNarrow), rows = 1 + Math.max(...strips.map(strip => strip.row));
  const width = PULSE + length * SPEED + 4, rowHeight = ROW * (gain > 10 ? 1.6 : 1), height = rows * rowHeight + 6;
  // a millimetre of paper in pixels: the page fills a wide screen, and scrolls on a narrow one
  const millimetre = isNarrow ? 3.4 : Math.min(Math.max(get("scroll").clientWidth / width, 3), 6);
  const canvas = get("paper"), ratio = devicePixelRatio || 1;
  canvas.width = Math.round(width * millimetre * ratio);
  canvas.height = Math.round(height * millimetre * ratio);
  canvas.style.width = `${width * millimetre}px`;
  canvas.style.height = `${height * millimetre}px`;
  canvas.setAttribute("aria-label", `ECG of ${recording.leads.length} leads (${recording.leads.join(", ")}), from `
    + `${clock(start)} to ${clock(start + length)}, at 25 mm a second and ${gain} mm a millivolt`);

  const pen = canvas.getContext("2d");
  pen.scale(ratio * millimetre, ratio * millimetre);
  drawPaper(pen, width, height);
  for (let row = 0; row < rows; row++) drawPulse(pen, 3 + rowHeight * (row + 0.5), gain);
  for (const strip of strips) {
    drawStrip(pen, recording, strip, start, 3 + rowHeight * (strip.row + 0.5), rowHeight, gain);
  }
}

/** Where each lead goes: twelve leads as electrocardiographs print them, else, and on a phone, a row for each. */
function layOut(leads, length, isNarrow) {
  if (isNarrow || !STANDARD_LEADS.every(lead => leads.includes(lead))) {
    return leads.map((lead, row) => ({ lead, row, begin: 0, end: length }));
  }
  const quarter = length / 4;
  const strips = CLASSIC.flatMap((names, row) => names.map((lead, column) => (
    { lead, row, begin: column * quarter, end: (column + 1) * quarter })));
  return [...strips, { lead: "II", row: 3, begin: 0, end: length }];
}

function drawPaper(pen, width, height) {
  pen.fillStyle = "#fff8f6";
  pen.fillRect(0, 0, width, height);
  for (const [step, color, line] of [[1, "#f7dcda", 0.1], [5, "#e9b1ae", 0.16]]) {
    pen.strokeStyle = color;
    pen.lineWidth = line;
    pen.beginPath();
    for (let x = 0; x <= width; x += step) { pen.moveTo(x, 0); pen.lineTo(x, height); }
    for (let y = 0; y <= height; y += step) { pen.moveTo(0, y); pen.lineTo(width, y); }
    pen.stroke();
  }
}

/** 1 mV for 200 ms. */
function drawPulse(pen, middle, gain) {
  ink(pen);
  [[2, 0], [3.5, 0], [3.5, -gain], [8.5, -gain], [8.5, 0], [10, 0]].forEach(([x, y]) => pen.lineTo(x, middle + y));
  pen.stroke();
}

function drawStrip(pen, { leads, rate, signal }, { lead, begin, end }, start, middle, rowHeight, gain) {
  const row = signal[leads.indexOf(lead)], left = PULSE + begin * SPEED, wide = (end - begin) * SPEED;
  const first = Math.round((start + begin) * rate), last = Math.min(Math.round((start + end) * rate) + 1, row.length);
  const samples = [...row.subarray(first, last)].filter(Number.isFinite).sort((a, b) => a - b);
  const centre = samples.length ? samples[samples.length >> 1] : 0;
  pen.save();
  pen.beginPath();
  pen.rect(left, middle - rowHeight, wide, 2 * rowHeight); // tall waves reach into the next row, as on paper
  pen.clip();
  ink(pen);
  let isDown = false;
  for (let k = first; k < last; k++) {
    if (Number.isNaN(row[k])) { isDown = false; continue; }
    const x = left + (k / rate - start - begin) * SPEED, y = middle - (row[k] - centre) * gain;
    isDown ? pen.lineTo(x, y) : pen.moveTo(x, y);
    isDown = true;
  }
  pen.stroke();
  pen.restore();
  if (begin > 0) { ink(pen); pen.moveTo(left, middle - 3); pen.lineTo(left, middle + 3); pen.stroke(); }
  pen.font = "bold 3.4px system-ui, sans-serif";
  pen.lineWidth = 1.1;
  pen.strokeStyle = "#fff8f6";
  pen.strokeText(lead, left + 1.2, middle - rowHeight / 2 + 4.4);
  pen.fillStyle = "#1d1d22";
  pen.fillText(lead, left + 1.2, middle - rowHeight / 2 + 4.4);
}

function ink(pen) {
  pen.strokeStyle = "#1d1d22";
  pen.lineWidth = 0.28;
  pen.lineJoin = "round";
  pen.beginPath();
}
