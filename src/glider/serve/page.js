"use strict";
// What comes from the server or a user goes into the page as text, never as markup.
const $ = (id) => document.getElementById(id);
const HUES = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#8a6fd1", "#a3a500"];
const VERDICTS = { fits: "#2e7d32", unsure: "#b26a00", stranger: "var(--line)" };
const state = { pools: [], models: [], turns: [], running: null, colours: new Map(), metrics: null };

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "colour") element.style.setProperty("--c", value);
    else if (name in element && typeof value !== "string") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

function colour(expert) {
  if (!state.colours.has(expert)) {
    const place = state.colours.size;
    state.colours.set(expert, HUES[place] ?? `hsl(${(place * 137.5) % 360} 60% 50%)`);
  }
  return state.colours.get(expert);
}

/* Say a fault, or with the role `status` what went well; no text takes both away. */
function complain(text, role = "alert") {
  for (const id of ["alert", "status"]) { $(id).textContent = id === role ? text : ""; $(id).hidden = !$(id).textContent; }
}

async function call(path, options = {}) {
  const key = sessionStorage.getItem("glider-key");
  const headers = { ...(options.body ? { "Content-Type": "application/json" } : {}), ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  const answer = await fetch(path, { ...options, headers });
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => ({}));
  if (answer.status === 401) $("key-dialog").open || $("key-dialog").showModal();
  const fault = new Error(body.error?.message ?? `${answer.status} ${answer.statusText}`);
  fault.code = body.error?.code;
  if (answer.status === 401) $("key-fault").textContent = key ? "The server does not know this key." : "";
  throw fault;
}

/* Streams: tokens as they come, and what the last chunk tells. */
async function ask(body, onPiece, signal) {
  const glider = { ...body.glider, trace: body.glider.trace && !state.untraced };
  const sent = { ...body, glider, stream: true, stream_options: { include_usage: true } };
  let answer;
  try {
    answer = await call("/v1/chat/completions", { method: "POST", body: JSON.stringify(sent), signal });
  } catch (fault) {
    if (fault.code !== "missing_right" || !glider.trace) throw fault;
    state.untraced = true; // this key may ask, and see no weights
    return ask(body, onPiece, signal);
  }
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", told = {}, waiting = [], count = 0;
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return told;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: {")) continue;
      const chunk = JSON.parse(line.slice(6));
      if (chunk.error) throw new Error(chunk.error.message);
      if (chunk.usage) told.usage = chunk.usage;
      const choice = chunk.choices[0];
      if (!choice) continue;
      const final = choice.finish_reason !== null;
      if (final) told = { ...told, ...chunk.glider, reason: choice.finish_reason };
      else if (chunk.glider?.experts) waiting.push({ number: count++, experts: chunk.glider.experts });
      if (choice.delta.content) { onPiece(choice.delta.content, waiting); waiting = []; }
    }
  }
}

function largest(experts) {
  return Object.entries(experts).reduce((best, one) => (one[1] > (best?.[1] ?? 0) ? one : best), null);
}

function mixture(tokens) {
  const sum = {};
  for (const { experts } of tokens) for (const [name, weight] of Object.entries(experts)) sum[name] = (sum[name] ?? 0) + weight / tokens.length;
  return sum;
}

function writeToken(place, text, tokens) {
  const experts = state.untraced ? null : mixture(tokens), main = experts && largest(experts);
  const span = make("span", { class: "token", ...(main ? { colour: colour(main[0]) } : {}) }, text);
  span.told = { text, experts, numbers: tokens.map((one) => one.number) };
  place.append(span);
}

/* An answer's tokens are one stop of the tab key; arrows walk through them. */
function walkable(place, trace) {
  place.tabIndex = 0;
  place.setAttribute("role", "group");
  place.setAttribute("aria-label", "Answer; arrow keys walk through its tokens");
  let at = -1;
  const show = (span) => {
    place.querySelector(".token.on")?.classList.remove("on");
    if (!span) { $("tip").hidden = true; return; }
    span.classList.add("on");
    tip(span, trace());
  };
  place.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape") show(null);
    if (!step) return;
    const spans = [...place.querySelectorAll(".token")];
    at = Math.max(0, Math.min(spans.length - 1, at + step));
    spans[at]?.scrollIntoView({ block: "nearest" });
    show(spans[at]);
    event.preventDefault();
  });
  place.addEventListener("mouseover", (event) => { const span = event.target.closest(".token"); if (span) show(span); });
  place.addEventListener("mouseleave", () => show(null));
  place.addEventListener("blur", () => show(null));
}

function tip(span, trace) {
  const box = $("tip"), { text, experts, numbers } = span.told;
  const rows = Object.entries(experts ?? {}).sort((a, b) => b[1] - a[1]).slice(0, 5);
  box.replaceChildren(make("b", {}, JSON.stringify(text)));
  if (!rows.length) box.append(make("div", {}, experts ? "no expert: the base model" : "this key may not see weights"));
  for (const [name, weight] of rows) {
    box.append(make("div", {}, `${name} ${weight.toFixed(2)}`));
    if (!trace) continue;
    const strip = make("div", { class: "strip", colour: colour(name) });
    const column = trace.experts.indexOf(name);
    trace.layers.forEach((layer, i) => {
      const mean = numbers.reduce((sum, n) => sum + (trace.tokens[n]?.weights[i]?.[column] ?? 0), 0) / Math.max(1, numbers.length);
      const cell = make("i", { title: layer });
      cell.style.opacity = mean;
      strip.append(cell);
    });
    box.append(strip);
  }
  if (trace && rows.length) box.append(make("div", { class: "quiet" }, `by layer, ${trace.layers.length} from left to right`));
  box.hidden = false;
  const place = span.getBoundingClientRect(), size = box.getBoundingClientRect();
  const below = place.bottom + 6 + size.height < innerHeight;
  box.style.left = `${Math.max(6, Math.min(place.left, innerWidth - size.width - 6))}px`;
  box.style.top = `${below ? place.bottom + 6 : Math.max(6, place.top - size.height - 6)}px`;
}

/* What the pool did: verdict, global scores, weights, heatmap. */
function poolOf(model) { return state.pools.find((pool) => model === pool.id || model.startsWith(`${pool.id}:`)); }

function number(value) { return Number.isInteger(value) && Math.abs(value) > 1 ? String(value) : value.toFixed(2); }

function bars(values, threshold, label, hue = colour, write = number) {
  const entries = Object.entries(values).sort((a, b) => b[1] - a[1]);
  const numbers = entries.map((one) => one[1]).concat(threshold ?? 0, 0);
  const low = Math.min(...numbers), width = Math.max(...numbers, low + 1e-9) - low;
  const at = (value) => `${(100 * (value - low)) / width}%`;
  const box = make("div", { class: "bars", role: "img", "aria-label": `${label}: ${entries.map(([name, value]) => `${name} ${write(value)}`).join(", ")}` });
  for (const [name, value] of entries) {
    const track = make("span", { class: "track" }), fill = make("span", { class: "fill", colour: hue(name) });
    fill.style.left = at(Math.min(0, value));
    fill.style.width = `${(100 * Math.abs(value)) / width}%`;
    track.append(fill);
    if (threshold !== null && threshold !== undefined) {
      const mark = make("span", { class: "mark", title: `threshold ${threshold.toFixed(2)}` });
      mark.style.left = at(threshold);
      track.append(mark);
    }
    box.append(make("span", { class: "name", colour: hue(name), title: name }, name), track, make("span", { class: "value" }, write(value)));
  }
  return box;
}

function heatmap(trace, room) {
  const rows = trace.experts.length, columns = trace.sites.length, cell = 18;
  const box = make("div", { class: "heat" }), names = make("ul");
  for (const name of trace.experts) names.append(make("li", { title: name }, name));
  const wide = Math.max(columns, 180, room - 150);
  const canvas = make("canvas", { role: "img", "aria-label": `Mean weight of ${rows} experts at ${columns} sites` });
  const scale = devicePixelRatio || 1, ink = getComputedStyle(document.body);
  canvas.width = wide * scale; canvas.height = (rows * cell + 16) * scale;
  canvas.style.width = `${wide}px`; canvas.style.height = `${rows * cell + 16}px`;
  const draw = canvas.getContext("2d");
  draw.scale(scale, scale);
  const step = wide / columns;
  draw.fillStyle = ink.getPropertyValue("--shade"); draw.fillRect(0, 0, wide, rows * cell);
  trace.heatmap.forEach((weights, column) => weights.forEach((weight, row) => {
    if (weight < 0.005) return;
    draw.globalAlpha = Math.min(1, Math.abs(weight)); draw.fillStyle = colour(trace.experts[row]);
    draw.fillRect(column * step, row * cell + 1, step + 0.3, cell - 2);
  }));
  draw.globalAlpha = 1; draw.fillStyle = ink.getPropertyValue("--quiet"); draw.font = "11px system-ui";
  draw.fillText("first layer", 0, rows * cell + 12);
  draw.textAlign = "right"; draw.fillText("last layer", wide, rows * cell + 12);
  canvas.addEventListener("mousemove", (event) => {
    const column = Math.floor(event.offsetX / step), row = Math.floor(event.offsetY / cell);
    canvas.title = trace.heatmap[column]?.[row] === undefined ? "" : `${trace.experts[row]} at ${trace.sites[column]}: ${trace.heatmap[column][row]}`;
  });
  box.append(names, make("div", { class: "scroll" }, canvas));
  return box;
}

function view(place, told, model) {
  const pool = poolOf(model), parts = [];
  const words = told.verdict ?? (told.alpha === null || told.alpha === undefined ? "no global term" : "no verdict");
  parts.push(make("h2", {}, "Verdict"), make("span", { class: `badge ${told.verdict ?? ""}` }, words));
  if (told.alpha !== null && told.alpha !== undefined) parts.push(make("span", { class: "quiet" }, `  alpha ${told.alpha}`));
  if (told.fault) parts.push(make("p", { class: "quiet" }, told.fault));
  if (told.scores && Object.keys(told.scores).length) {
    parts.push(make("h2", {}, `Global scores of the query${pool?.threshold === null || !pool ? "" : " (line: threshold)"}`), bars(told.scores, pool?.threshold, "Global scores"));
  }
  if (told.verdict === "stranger" && told.experts && !Object.keys(told.experts).length) parts.push(make("p", { class: "quiet" }, "No expert suits: the base model answered alone."));
  if (state.untraced) parts.push(make("p", { class: "quiet" }, "This key lacks the right to see weights (trace)."));
  if (told.experts && Object.keys(told.experts).length) parts.push(make("h2", {}, "Weight in this answer"), bars(told.experts, null, "Weights"));
  if (told.trace?.heatmap.some((weights) => weights.some(Boolean))) parts.push(make("h2", {}, "Sites by experts"), heatmap(told.trace, place.clientWidth));
  place.replaceChildren(...parts);
}

/* Chat */
async function send(event) {
  event.preventDefault();
  const text = $("text").value.trim(), model = $("model").value;
  if (!text || state.running) return;
  complain("");
  $("turns").querySelector(".hint")?.remove();
  $("turns").append(make("p", { class: "turn user" }, text));
  const place = make("p", { class: "turn assistant" }), messages = [...state.turns, { role: "user", content: text }];
  $("turns").append(place);
  $("turns").setAttribute("aria-busy", "true");
  $("text").value = "";
  state.running = new AbortController();
  $("send").disabled = true; $("stop").disabled = false;
  let trace = null, answer = "";
  walkable(place, () => trace);
  const body = { model, messages, max_tokens: Number($("tokens").value), temperature: Number($("temperature").value), glider: { trace: mayTrace(model) } };
  try {
    const told = await ask(body, (piece, tokens) => { answer += piece; writeToken(place, piece, tokens); place.scrollIntoView({ block: "nearest" }); }, state.running.signal);
    trace = told.trace ?? null;
    const end = told.reason === "length" ? ", cut at the limit" : "";
    place.append(make("span", { class: "facts" }, `${model}, ${told.usage?.completion_tokens ?? "?"} tokens${end}`));
    if (place.isConnected) view($("chat-view"), told, model);
    if (place.isConnected) state.turns = [...messages, { role: "assistant", content: answer }];
  } catch (fault) {
    if (fault.name !== "AbortError") complain(fault.message);
    if (answer && place.isConnected) state.turns = [...messages, { role: "assistant", content: answer }];
  } finally {
    state.running = null;
    $("send").disabled = false; $("stop").disabled = true;
    $("turns").setAttribute("aria-busy", "false");
  }
}

function mayTrace(model) { return state.models.some((one) => one.id === model && one.kind !== "base") || model.includes(":"); }

/* Side by side */
function side(number) {
  const place = document.querySelector(`[data-side="${number}"]`);
  const model = make("select", { "aria-label": `Model of side ${number + 1}` }, ...options());
  const router = make("input", { "aria-label": `Router of side ${number + 1}`, placeholder: "the pool's router", list: "routers" });
  const without = make("select", { "aria-label": `Expert that side ${number + 1} leaves out` });
  const answer = make("div", { class: "answer", "aria-live": "polite" }), told = make("div");
  const refill = () => {
    const pool = poolOf(model.value);
    fill(without, [make("option", { value: "" }, "every expert"), ...(pool?.experts ?? []).map((one) => make("option", { value: one.name }, `without ${one.name}`))]);
    without.disabled = router.disabled = !pool;
  };
  model.addEventListener("change", refill);
  if (number === 1) model.value = state.models.find((one) => one.kind === "base")?.id ?? model.value;
  refill();
  place.replaceChildren(make("div", { class: "row" }, model, router, without), answer, told);
  return { model, router, without, answer, told, refill };
}

async function runSide({ model, router, without, answer, told }, text) {
  answer.replaceChildren(); told.replaceChildren();
  const fresh = answer.cloneNode(false);
  answer.replaceWith(fresh);
  let trace = null;
  walkable(fresh, () => trace);
  const own = router.disabled || !router.value.trim(), name = own ? model.value : `${model.value}:${router.value.trim()}`;
  const glider = { trace: mayTrace(name), ...(without.value ? { exclude: [without.value] } : {}) };
  const body = { model: name, messages: [{ role: "user", content: text }], max_tokens: Number($("tokens").value), temperature: 0, glider };
  try {
    const last = await ask(body, (piece, tokens) => writeToken(fresh, piece, tokens));
    trace = last.trace ?? null;
    view(told, last, name);
  } catch (fault) { complain(fault.message); }
  return fresh;
}

async function compare(event) {
  event.preventDefault();
  const text = $("compare-text").value.trim();
  if (!text || $("compare-run").disabled) return;
  complain("");
  $("compare-run").disabled = true;
  await Promise.all(state.sides.map(async (one) => { one.answer = await runSide(one, text); }));
  $("compare-run").disabled = false;
}

/* Experts */
async function showExperts() {
  await load();
  const served = await metrics().catch(() => null), parts = [];
  for (const pool of state.pools) {
    parts.push(make("h2", {}, `${pool.id}: ${pool.experts.length} experts on ${pool.base}`), make("p", { class: "quiet" }, `router ${pool.router}, signal ${pool.signal ?? "none"}, generation ${pool.generation}`));
    parts.push(make("div", { class: "cards" }, ...pool.experts.map((expert) => card(pool, expert, served)), ...pool.adapters.map((one) => adapterCard(pool, one))));
    if (pool.allow_changes) parts.push(changing(pool));
  }
  $("experts").replaceChildren(...parts);
}

function card(pool, expert, served) {
  const facts = make("dl"), fact = (name, value) => facts.append(make("dt", {}, name), make("dd", {}, String(value)));
  fact("model", expert.model ?? "not by itself");
  if (expert.task) fact("task", expert.task);
  fact("licence", expert.licence ?? "not told");
  for (const [name, value] of Object.entries(expert.metrics ?? {})) fact(name, Number(value).toFixed(3));
  const count = served?.find((one) => one.name === "glider:expert_tokens_total" && one.labels.pool === pool.id && one.labels.expert === expert.name);
  if (expert.gain) {
    const { base, alone, metric, rows } = expert.gain, percent = (value) => (100 * value).toFixed(1);
    fact("own task", `${percent(base)} by the base, ${percent(alone)} with it (${metric}, ${rows} rows)`);
  }
  if (served) fact("traced tokens", count ? count.value : 0);
  return make("article", { class: "card", colour: colour(expert.name) }, make("h3", {}, expert.name), make("p", {}, expert.description ?? "no description"), facts, ...removal(pool, expert.name));
}

/* An adapter without gates or profile answers by its name alone. */
function adapterCard(pool, { name, model }) {
  const facts = make("dl", {}, make("dt", {}, "model"), make("dd", {}, model));
  return make("article", { class: "card" }, make("h3", {}, name), make("p", {}, "An adapter that no query is sent to: it answers by its name alone."), facts, ...removal(pool, name));
}

function removal(pool, name) {
  if (!pool.allow_changes) return [];
  const remove = make("button", { "aria-label": `Remove ${name}` }, "Remove");
  remove.addEventListener("click", () => change("/v1/unload_lora_adapter", { lora_name: name, model: pool.id, expected_generation: pool.generation }));
  return [make("div", { class: "row" }, remove)];
}

function changing(pool) {
  const name = make("input", { "aria-label": "Name of the expert" , placeholder: "name" }), path = make("input", { "aria-label": "Its directory", placeholder: "directory" });
  const form = make("form", { class: "row" }, name, path, make("button", {}, "Add an expert"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    change("/v1/load_lora_adapter", { lora_name: name.value, lora_path: path.value, model: pool.id, expected_generation: pool.generation });
  });
  const again = make("button", { type: "button" }, "Reload from disk");
  again.addEventListener("click", () => change("/v1/pool/reload", { model: pool.id, expected_generation: pool.generation }));
  form.append(again);
  return form;
}

async function change(path, body) {
  complain("");
  try {
    const told = await (await call(path, { method: "POST", body: JSON.stringify(body) })).json();
    complain(`${told.id}: ${told.message ?? `done, generation ${told.generation}`}`, "status");
  } catch (fault) { complain(fault.message); }
  await showExperts();
}

/* Metrics */
async function metrics() {
  const lines = (await (await call("/metrics")).text()).split("\n").filter((line) => line && !line.startsWith("#"));
  return lines.map((line) => {
    const [, name, , labels, value] = line.match(/^([\w:]+)(\{(.*)\})? (\S+)$/) ?? [];
    const found = {};
    for (const [, key, text] of (labels ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) found[key] = text.replaceAll('\\"', '"').replaceAll("\\\\", "\\");
    return { name, labels: found, value: Number(value) };
  });
}

async function showMetrics() {
  let found;
  try { found = await metrics(); } catch (fault) { $("metrics").replaceChildren(make("p", {}, fault.message)); return; }
  const sum = (name, test = () => true) => found.filter((one) => one.name === name && test(one.labels)).reduce((total, one) => total + one.value, 0);
  const mean = (name) => (sum(`${name}_count`) ? sum(`${name}_sum`) / sum(`${name}_count`) : null);
  const tokens = sum("vllm:generation_tokens_total"), now = performance.now();
  const rate = state.metrics ? (1000 * (tokens - state.metrics.tokens)) / (now - state.metrics.now) : 0;
  state.metrics = { tokens, now };
  const time = (seconds) => (seconds === null ? "none yet" : `${(1000 * seconds).toFixed(1)} ms`);
  const tiles = [["running", sum("vllm:num_requests_running")], ["waiting", sum("vllm:num_requests_waiting")], ["requests", sum("glider:requests_total")],
    ["refused", sum("glider:refused_requests_total")], ["tokens written", tokens], ["tokens a second", rate.toFixed(1)],
    ["to the first token", time(mean("vllm:time_to_first_token_seconds"))], ["between tokens", time(mean("vllm:inter_token_latency_seconds"))], ["routing", time(mean("glider:routing_seconds"))]];
  const parts = [make("div", { class: "tiles" }, ...tiles.map(([name, value]) => make("div", { class: "tile" }, name, make("b", {}, String(value)))))];
  const prefix = (labels) => (state.pools.length > 1 ? `${labels.pool}/` : ""), experts = {}, hues = {};
  for (const { labels, value } of found.filter((one) => one.name === "glider:expert_tokens_total")) {
    const name = prefix(labels) + labels.expert;
    experts[name] = value; hues[name] = colour(labels.expert);
  }
  if (Object.keys(experts).length) parts.push(make("h2", {}, "Tokens by their main expert, of traced answers"), bars(experts, null, "Tokens", (name) => hues[name], String));
  const verdicts = found.filter((one) => one.name === "glider:requests_total");
  if (verdicts.length) parts.push(make("h2", {}, "Requests by pool and verdict"), bars(Object.fromEntries(verdicts.map((one) => [`${one.labels.pool} ${one.labels.verdict}`, one.value])), null, "Requests", (name) => VERDICTS[name.split(" ").at(-1)] ?? "var(--quiet)", String));
  $("metrics").replaceChildren(...parts);
}

/* The frame */
function options() { return state.models.map((one) => make("option", { value: one.id }, ["expert", "adapter"].includes(one.kind) ? `${one.id} alone` : one.kind === "base" ? `base: ${one.id}` : one.id)); }

/* Give a list its options; what was chosen stays where it is still there. */
function fill(list, fresh) {
  const value = list.value;
  list.replaceChildren(...fresh);
  if (fresh.some((one) => one.value === value)) list.value = value;
}

async function load() {
  state.models = (await (await call("/v1/models")).json()).data;
  state.pools = (await (await call("/v1/pool")).json()).data;
  for (const pool of state.pools) for (const expert of pool.experts) colour(expert.name);
  fill($("model"), options());
  for (const one of state.sides ?? []) { fill(one.model, options()); one.refill(); }
}

function select(tab) {
  for (const one of document.querySelectorAll("[role=tab]")) {
    const on = one === tab;
    one.setAttribute("aria-selected", String(on)); one.tabIndex = on ? 0 : -1;
    $(one.getAttribute("aria-controls")).hidden = !on;
  }
  clearInterval(state.timer);
  if (tab.id === "tab-experts") showExperts().catch((fault) => complain(fault.message));
  if (tab.id === "tab-metrics") { showMetrics(); state.timer = setInterval(showMetrics, 2000); }
}

async function begin() {
  state.untraced = false;
  try {
    await load();
  } catch (fault) { complain(fault.message); return; }
  complain("");
  state.sides = [side(0), side(1)];
}

const tabs = [...document.querySelectorAll("[role=tab]")];
tabs.forEach((tab, i) => {
  tab.addEventListener("click", () => select(tab));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) { const next = tabs[(i + step + tabs.length) % tabs.length]; next.focus(); select(next); }
  });
});
$("ask").addEventListener("submit", send);
$("compare-form").addEventListener("submit", compare);
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); $("ask").requestSubmit(); }
  if (event.key === "Escape") state.running?.abort();
});
$("compare-text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); $("compare-form").requestSubmit(); }
});
$("stop").addEventListener("click", () => state.running?.abort());
$("clear").addEventListener("click", () => { state.running?.abort(); state.turns = []; $("turns").replaceChildren(); $("chat-view").replaceChildren(); $("text").focus(); });
$("key-button").addEventListener("click", () => $("key-dialog").showModal());
$("key-dialog").addEventListener("close", () => { const key = $("key").value; if (key) { sessionStorage.setItem("glider-key", key); $("key").value = ""; begin(); } });
begin();
