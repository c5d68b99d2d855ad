// The page: what its controls say, what is sent to worker.js, and what is shown of the answers.

import { Generator } from "./random.js";
import { toPixels } from "./sampler.js";

const $ = (id) => document.getElementById(id);
const MOST_FRAMES = 120; // steps of a picture that are kept for the slider
const MOST_PICTURES = 64; // pictures that are kept

let model; // what model.json says
let worker; // computes; see worker.js
let pictures = []; // {settings, frames: [{index, timestep, sigma, pixels: [x_t, x_0]}], pixels}, the newest first
let shown = null; // the picture on the stage
let playing = null; // the timer of the animation
let job = null; // what is being drawn: {settings, left, finish}
let progress = 0; // the number of the last job, so that answers to an earlier one are not taken for this one's

start();

async function start() {
  if (window.hasProblem) return;
  try {
    if (await reloadsIsolated()) return;
    say("Loading what the page needs to know about the model.");
    model = await fetchModel();
    fillControls();
    readAddress();
    showNoise();
    connectControls();
    loadNetwork();
  } catch (error) {
    fail(error.message);
  }
}

async function fetchModel() {
  const url = new URL("model.json", import.meta.url);
  const words = `model.json is missing beside this page. Is the whole folder on the server? It was looked for at ${url.href}.`;
  const response = await fetch(url, { cache: "no-cache" }).catch(() => null);
  if (!response?.ok) throw new Error(words);
  return response.json().catch(() => {
    throw new Error(`model.json is not what the export wrote. Is it whole? It was read from ${url.href}.`);
  });
}

/**
 * On a server that does not isolate the page, install isolate.js and load the page once more, so that the processor's threads
 * can be used. Not on this machine, where it would stay for other pages at the same address, nor inside of another page.
 */
async function reloadsIsolated() {
  const isHere = ["localhost", "127.0.0.1", "[::1]"].includes(location.hostname);
  const isUseful = !crossOriginIsolated && isSecureContext && window.top === window && navigator.hardwareConcurrency > 1;
  if (!isUseful || isHere || !navigator.serviceWorker || sessionStorage.getItem("isolated")) return false;
  try {
    sessionStorage.setItem("isolated", "tried"); // at most once, whatever comes of it
    await navigator.serviceWorker.register(new URL("isolate.js", import.meta.url));
    await navigator.serviceWorker.ready;
    location.reload();
    return true;
  } catch {
    return false; // one thread is enough
  }
}

// The controls

function fillControls() {
  const { name, classes, has_null_label, samplers, sampler, guidance_scale } = model;
  document.title = `${name}: pictures out of noise`;
  $("title").textContent = name;
  const kinds = classes.length === 1 ? "one class" : `${classes.length} classes`;
  $("about").textContent = `A diffusion model of ${kinds} that draws in this browser. Nothing that you do here leaves your device.`;
  const choices = [...classes.entries(), ...(has_null_label ? [[classes.length, "any class"]] : [])];
  $("classes").replaceChildren(
    ...choices.map(([label, text]) => {
      const input = element("input", { type: "radio", name: "label", value: label, checked: label === 0 });
      return element("label", { className: "chip" }, input, element("span", {}, text));
    }),
  );
  $("sampler").replaceChildren(...Object.entries(samplers).map(([key, { title }]) => element("option", { value: key }, title)));
  $("sampler").value = sampler;
  $("guidance").max = Math.max(8, Math.ceil(guidance_scale));
  $("guidance").value = has_null_label ? guidance_scale : 1;
  if (navigator.gpu) $("device").append(element("option", { value: "webgpu" }, "the graphics card"));
  setSteps(samplers[sampler].default_steps);
  updateControls();
  $("facts").textContent =
    `${model.architecture} · ${(model.parameters / 1e6).toFixed(1)} million parameters · ${model.sample_size} × ` +
    `${model.sample_size} pixels · predicts ${{ epsilon: "the noise", v_prediction: "v", sample: "the picture" }[model.prediction_type]}` +
    ` · exported by cond_ddpm ${model.version}, runs on onnxruntime-web ${model.runtime.version}`;
}

/** The settings that the controls say. */
function settings() {
  const counts = stepCounts();
  const label = Number(document.querySelector("input[name=label]:checked").value);
  return {
    label,
    seed: $("seed").value,
    steps: counts[$("steps").value],
    guidance: label === model.classes.length ? 1 : Number($("guidance").value),
    sampler: $("sampler").value,
  };
}

/** The numbers of steps that the chosen sampler has tables for. */
const stepCounts = () => Object.keys(model.samplers[$("sampler").value].tables).map(Number);

function setSteps(wanted) {
  const counts = stepCounts();
  const nearest = counts.reduce((best, count) => (Math.abs(count - wanted) < Math.abs(best - wanted) ? count : best));
  $("steps").max = counts.length - 1;
  $("steps").value = counts.indexOf(nearest);
}

function updateControls() {
  const { label, steps, guidance } = settings();
  $("steps-value").value = steps;
  $("steps").setAttribute("aria-valuetext", `${steps} steps`);
  const isUnconditional = label === model.classes.length;
  $("guidance").disabled = isUnconditional || !model.has_null_label;
  $("guidance-value").value = isUnconditional ? "none" : guidance;
  $("guidance-hint").textContent = isUnconditional
    ? "Without a class there is nothing to guide towards."
    : !model.has_null_label
      ? "This model was trained without label dropout, so it cannot be guided."
      : guidance === 1
        ? "1: the class as it was learned, and half of the work."
        : guidance === 0
          ? "0: the class has no effect."
          : guidance < 1
            ? "Less than 1: the class has less effect."
            : "More than 1: the class is exaggerated.";
}

/** The seed as a whole number from 0 to 2^64 - 1, or null. */
function checkSeed() {
  const text = $("seed").value.trim();
  const seed = /^[0-9]{1,20}$/.test(text) ? BigInt(text) : null;
  const isValid = seed !== null && seed < 2n ** 64n;
  const words = `Expected a whole number from 0 to ${2n ** 64n - 1n}.`;
  $("seed").setCustomValidity(isValid ? "" : words);
  $("seed-hint").textContent = isValid ? "The same seed gives the same picture." : words;
  $("seed").setAttribute("aria-invalid", String(!isValid));
  return isValid ? seed : null;
}

function connectControls() {
  $("controls").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!$("draw").disabled && checkSeed() !== null) draw();
  });
  $("controls").addEventListener("input", updateControls);
  $("seed").addEventListener("input", () => {
    if (checkSeed() !== null && !job) showNoise();
  });
  $("dice").addEventListener("click", () => {
    $("seed").value = crypto.getRandomValues(new Uint32Array(1))[0] % 100000;
    checkSeed();
    if (!job) showNoise();
  });
  $("sampler").addEventListener("change", () => {
    setSteps(model.samplers[$("sampler").value].default_steps);
    updateControls();
  });
  $("device").addEventListener("change", loadNetwork);
  $("stop").addEventListener("click", stop);
  $("again").addEventListener("click", loadNetwork);
  $("time").addEventListener("input", () => {
    pause();
    showFrame(Number($("time").value));
  });
  $("play").addEventListener("click", () => (playing ? pause() : play()));
  $("copy").addEventListener("click", copyPython);
}

// The address of the page says what to draw, so that a link to a picture can be sent: #class=horse&seed=7

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  const label = given.get("class") === "any class" ? model.classes.length : model.classes.indexOf(given.get("class"));
  const chip = document.querySelector(`input[name=label][value="${label}"]`);
  if (chip) chip.checked = true;
  if (/^[0-9]{1,20}$/.test(given.get("seed") ?? "")) $("seed").value = given.get("seed");
  if (given.get("sampler") in model.samplers) $("sampler").value = given.get("sampler");
  setSteps(Number(given.get("steps")) || model.samplers[$("sampler").value].default_steps);
  if (model.has_null_label && given.get("guidance")) $("guidance").value = given.get("guidance");
  checkSeed();
  updateControls();
}

function writeAddress({ label, ...rest }) {
  const address = new URLSearchParams({ class: className(label), ...rest });
  history.replaceState(null, "", `#${address}`);
}

const className = (label) => model.classes[label] ?? "any class";

// The network, in a thread of its own

function loadNetwork() {
  worker?.terminate();
  job = null;
  $("draw").disabled = true;
  $("stop").disabled = true;
  $("again").hidden = true;
  $("state").className = "";
  worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
  worker.onmessage = ({ data }) => RECEIVED[data.type](data);
  worker.onerror = () => fail("worker.js could not be started. Is the whole folder on the server?");
  // Beyond four threads, a small network gains nothing.
  const threads = crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;
  worker.postMessage({ type: "load", model, device: $("device").value, threads });
}

const RECEIVED = {
  progress({ what, received, total }) {
    const names = { runtime: "Loading the runtime", network: "Loading the network", start: "Starting the network" };
    const megabytes = (bytes) => (bytes / 1e6).toFixed(1);
    say(total ? `${names[what]}: ${megabytes(received)} of ${megabytes(total)} MB` : names[what], total ? received / total : null);
  },
  ready({ device, threads }) {
    const where = device === "webgpu" ? "the graphics card" : threads === 1 ? "one thread" : `${threads} threads`;
    $("draw").disabled = false;
    say(`Ready, on ${where}.`, 1);
    document.body.dataset.ready = `${device} ${threads}`;
  },
  step(step) {
    if (step.id !== progress) return;
    const { frames, settings } = shown;
    const every = Math.ceil(settings.steps / MOST_FRAMES);
    if (step.index % every === 0 || step.index === settings.steps - 1) {
      frames.push(step);
      showFrame(frames.length - 1);
    }
    const which = job.total > 1 ? `picture ${job.done + 1} of ${job.total}, ` : "";
    say(`Drawing: ${which}step ${step.index + 1} of ${settings.steps}`, (step.index + 1) / settings.steps);
  },
  done({ id, stopped, pixels }) {
    if (id !== progress) return;
    if (!stopped) keep(pixels);
    job.done += 1;
    if (stopped || job.done === job.total) finish(stopped);
    else next();
  },
  error({ message }) {
    fail(message);
  },
};

// Drawing

function draw() {
  pause();
  const chosen = { ...settings(), seed: checkSeed() };
  writeAddress(chosen);
  job = { settings: chosen, total: Number($("count").value), done: 0, began: performance.now() };
  $("draw").disabled = true;
  $("stop").disabled = false;
  $("device").disabled = true;
  $("stage").scrollIntoView({ block: "nearest" });
  say("Drawing.", 0);
  next();
}

/** Ask for the next picture of the job; each has the seed after that of the one before. */
function next() {
  progress += 1;
  const seed = BigInt.asUintN(64, job.settings.seed + BigInt(job.done));
  const wanted = { ...job.settings, seed };
  shown = { settings: wanted, frames: [], pixels: null };
  showNoise(seed);
  worker.postMessage({ type: "sample", id: progress, settings: wanted });
}

function stop() {
  worker.postMessage({ type: "stop" });
  $("stop").disabled = true;
}

function finish(stopped) {
  const seconds = (performance.now() - job.began) / 1000;
  const count = job.total === 1 ? "The picture" : `${job.total} pictures`;
  say(stopped ? "Stopped." : `${count} took ${seconds.toFixed(1)} seconds.`, stopped ? 0 : 1);
  job = null;
  $("draw").disabled = false;
  $("stop").disabled = true;
  $("device").disabled = false;
  if (document.activeElement === document.body) $("draw").focus({ preventScroll: true }); // it was disabled meanwhile
}

/** Put the picture on the stage into the gallery. */
function keep(pixels) {
  shown.pixels = pixels;
  pictures = [shown, ...pictures].slice(0, MOST_PICTURES);
  showGallery();
  select(shown);
}

// The stage: x_t and the predicted x_0 at one step

function showNoise(seed = checkSeed()) {
  if (seed === null) return;
  pause();
  if (!job) shown = null;
  const size = model.channels * model.sample_size ** 2;
  paint($("noisy"), toPixels(new Generator(seed).randn(size), model), `Pure noise, from the seed ${seed}`);
  $("original").getContext("2d").clearRect(0, 0, model.sample_size, model.sample_size);
  $("original").setAttribute("aria-label", "Empty: the network has not been asked yet");
  $("moment").textContent = `Pure noise, from the seed ${seed}.`;
  $("time").disabled = $("play").disabled = true;
  $("time").value = $("time").max = 0;
}

function showFrame(index) {
  const { frames, settings, pixels } = shown;
  const frame = frames[index];
  const what = `${className(settings.label)}, seed ${settings.seed}`;
  const when = `step ${frame.index + 1} of ${settings.steps}`;
  const isResult = pixels && index === frames.length - 1;
  paint($("noisy"), frame.pixels[0], `${what}: the noisy sample at ${when}`);
  paint($("original"), isResult ? pixels : frame.pixels[1], `${what}: ${isResult ? "the picture" : `the picture predicted at ${when}`}`);
  $("time").max = frames.length - 1;
  $("time").value = index;
  $("time").disabled = $("play").disabled = frames.length < 2;
  $("time").setAttribute("aria-valuetext", when);
  $("moment").textContent =
    `${when[0].toUpperCase()}${when.slice(1)} · t = ${Math.round(frame.timestep)} · σ = ${twoDigits(frame.sigma)} · ` +
    `signal to noise ${twoDigits(frame.sigma ** -2)}`;
}

/** Two significant digits, without an exponent: 9999, 5.7, 0.18, 0.00004. */
const twoDigits = (number) => number.toFixed(number < 10 ? Math.min(9, Math.max(0, 1 - Math.floor(Math.log10(number)))) : 0);

function paint(canvas, pixels, words) {
  canvas.width = canvas.height = model.sample_size; // also empties it
  canvas.getContext("2d").putImageData(new ImageData(pixels, model.sample_size), 0, 0);
  if (words) canvas.setAttribute("aria-label", words);
}

function play() {
  if (Number($("time").value) === shown.frames.length - 1) showFrame(0);
  $("play").textContent = "❚❚";
  $("play").setAttribute("aria-label", "Pause");
  playing = setInterval(
    () => {
      const index = Number($("time").value) + 1;
      if (index >= shown.frames.length) pause();
      else showFrame(index);
    },
    Math.max(30, 2400 / shown.frames.length),
  );
}

function pause() {
  clearInterval(playing);
  playing = null;
  $("play").textContent = "▶";
  $("play").setAttribute("aria-label", "Play the steps");
}

// The gallery

function showGallery() {
  $("empty").hidden = true;
  $("gallery").replaceChildren(
    ...pictures.map((picture) => {
      const { label, seed } = picture.settings;
      const canvas = element("canvas", { ariaHidden: "true" });
      paint(canvas, picture.pixels);
      const button = element("button", { type: "button" }, canvas, element("span", {}, className(label)), element("small", {}, `seed ${seed}`));
      button.addEventListener("click", () => !job && select(picture));
      picture.button = button;
      return element("li", {}, button);
    }),
  );
}

/** Show a finished picture on the stage, and how to have it elsewhere. */
function select(picture) {
  pause();
  shown = picture;
  showFrame(picture.frames.length - 1);
  for (const { button } of pictures) button.setAttribute("aria-pressed", String(button === picture.button));
  const { label, seed, steps, guidance, sampler } = picture.settings;
  $("selected").hidden = false;
  $("python").textContent = pythonLines(picture.settings);
  const canvas = element("canvas");
  paint(canvas, picture.pixels);
  $("download").href = canvas.toDataURL("image/png");
  $("download").download = `${className(label).replace(/[^\p{L}\p{N}]+/gu, "-")}-${seed}-${steps}-${guidance}-${sampler}.png`;
}

function pythonLines({ label, seed, steps, guidance, sampler }) {
  const isUnconditional = label === model.classes.length;
  const labels = isUnconditional ? "None" : `[${model.has_names ? JSON.stringify(className(label)) : label}]`;
  const named = [`class_labels=${labels}`, `seeds=[${seed}]`, `num_inference_steps=${steps}`];
  if (!isUnconditional) named.push(`guidance_scale=${guidance}`);
  if (sampler !== model.own_sampler) named.push(`sampler=${JSON.stringify(sampler)}`);
  return (
    "from cond_ddpm import CondDDPMPipeline\n\n" +
    `pipeline = CondDDPMPipeline.from_pretrained(${JSON.stringify(model.source)})\n` +
    `pipeline(\n    ${named.join(",\n    ")},\n).images[0].save("picture.png")`
  );
}

async function copyPython() {
  try {
    await navigator.clipboard.writeText($("python").textContent);
    $("copy").textContent = "Copied";
  } catch {
    getSelection().selectAllChildren($("python")); // not allowed: select it instead
    $("copy").textContent = "Selected: copy it by Ctrl-C";
  }
  setTimeout(() => ($("copy").textContent = "Copy the Python lines"), 2000);
}

// Words

/**
 * Show what is being done, and how far it is: a share, or null where that is not known. What changes many times a second is
 * not read aloud.
 */
function say(words, share = null) {
  $("status").setAttribute("aria-live", share > 0 && share < 1 ? "off" : "polite");
  $("status").textContent = words;
  if (share === null) $("progress").removeAttribute("value");
  else $("progress").value = share;
}

/** Show what went wrong, and let the reader try again. */
function fail(words) {
  job = null;
  say(words);
  $("state").className = "problem";
  $("draw").disabled = $("stop").disabled = true;
  $("device").disabled = false; // another one may do it
  $("again").hidden = !model;
}

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}
