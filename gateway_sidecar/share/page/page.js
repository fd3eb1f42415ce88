// The live page. It reads one stream of server-sent events and changes only what has changed. Names, states and reasons
// come from engines and other strangers: they become text nodes and attributes, never markup.
'use strict';

const HOUR_S = 3600;
const SILENCE_MS = 15000; // The daemon says something every five seconds.
const AGAIN_MS = 2000;
const HIDDEN_MS = 60000; // A page that nobody sees gives its place up.
const MOST_EVENTS = 200;
const FEW = 20; // Replicas of one service that are shown without being asked for.
const LONG = 20; // Characters; what is shorter is not broken into lines.
const GOOD = new Set(['serving', 'draining']);

const byId = (id) => document.getElementById(id);
const seconds = () => performance.now() / 1000;

let state = null; // What the daemon said last, patches merged.
let hour = new Map(); // Service -> {ages, at, measures}.
let log = []; // Events, the oldest first.
let lastEvent = null;
let meanings = {};
let isLive = false;
let heardAt = null;
const cards = new Map();
const expanded = new Set();

// -- making elements

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function drawn(tag, attributes = {}) {
  const element = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// A word that stands on one line unless it is long.
function sayWord(element, text) {
  say(element, text);
  element.classList.toggle('long', text.length > LONG);
}

function set(element, name, value) {
  if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

function sayLines(list, lines) {
  while (list.children.length > lines.length) list.lastChild.remove();
  while (list.children.length < lines.length) list.append(make('li'));
  lines.forEach((line, number) => say(list.children[number], line));
}

// The elements of `wanted`, in that order, and no others; one that stays where it is is not touched.
function place(parent, wanted) {
  const kept = new Set(wanted);
  for (const child of [...parent.children]) if (!kept.has(child)) child.remove();
  wanted.forEach((child, number) => {
    if (parent.children[number] !== child) parent.insertBefore(child, parent.children[number] || null);
  });
}

// -- words

function age(s) {
  const whole = Math.max(0, Math.floor(s));
  const two = (n) => String(n).padStart(2, '0');
  if (whole < 60) return `${whole}s`;
  if (whole < 3600) return `${Math.floor(whole / 60)}m${two(whole % 60)}s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)}h${two(Math.floor((whole % 3600) / 60))}m`;
  return `${Math.floor(whole / 86400)}d${two(Math.floor((whole % 86400) / 3600))}h`;
}

const ageOf = (it) => (it.age_s === undefined ? '' : age(it.age_s + seconds() - it.said_at));

function number(value) {
  if (value === undefined || value === null) return '–';
  return String(Number(value.toFixed(value >= 100 ? 0 : value >= 10 ? 1 : 2)));
}

function duration(value) {
  if (value === undefined || value === null) return '–';
  return value < 1 ? `${Number((value * 1000).toPrecision(3))} ms` : `${Number(value.toFixed(value < 10 ? 1 : 0))} s`;
}

const clock = (date) => date.toLocaleTimeString([], { hour12: false });

function counted(n, noun) {
  return `${n} ${noun}${n === 1 ? '' : 's'}`;
}

// -- what the daemon says

// A JSON merge patch. Whatever has an age remembers when it was said.
function merge(target, patch) {
  for (const [key, value] of Object.entries(patch)) {
    if (key === '__proto__') continue; // No member of an object that JavaScript makes by itself.
    if (value === null) delete target[key];
    else if (typeof value !== 'object' || Array.isArray(value)) target[key] = value;
    else target[key] = merge(target[key] || {}, value);
  }
  if ('age_s' in patch) target.said_at = seconds();
  return target;
}

const heard = {
  state(data) {
    if (state !== null && state.version !== data.version) location.reload(); // Another daemon has another page.
    state = merge({}, data);
  },
  patch(data) {
    merge(state, data);
  },
  history(data) {
    hour = new Map();
    const now = seconds();
    for (const [name, measures] of Object.entries(data.services)) {
      const length = Object.values(measures)[0].length;
      hour.set(name, { at: data.ages.slice(data.ages.length - length).map((s) => now - s), measures });
    }
  },
  point(data) {
    for (const [name, values] of Object.entries(data.services)) {
      if (!hour.has(name)) hour.set(name, { at: [], measures: Object.fromEntries(data.measures.map((it) => [it, []])) });
      const { at, measures } = hour.get(name);
      const old = at.length && at[0] < seconds() - HOUR_S;
      at.push(seconds());
      if (old) at.shift();
      data.measures.forEach((measure, index) => {
        measures[measure].push(values[index]);
        if (old) measures[measure].shift();
      });
    }
    for (const name of hour.keys()) if (!(name in data.services)) hour.delete(name);
  },
  events(data) {
    if (data.skipped) log.push({ event: 'more', skipped: data.skipped });
    log.push(...data.events);
    if (log.length > 2 * MOST_EVENTS) log = log.slice(-MOST_EVENTS);
    drawEvents(data.events.length + (data.skipped ? 1 : 0));
  },
};

async function listen(abort) {
  const headers = lastEvent === null ? {} : { 'Last-Event-ID': lastEvent };
  let timer = setTimeout(() => abort.abort(), SILENCE_MS);
  try {
    const answer = await fetch('page/stream', { headers, signal: abort.signal, cache: 'no-store' });
    if (!answer.ok) throw new Error((await answer.text()).trim() || `${answer.status}`);
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = ''; ; ) {
      const { value, done } = await reader.read();
      if (done) return;
      clearTimeout(timer);
      timer = setTimeout(() => abort.abort(), SILENCE_MS);
      const messages = (rest + value).split('\n\n');
      rest = messages.pop();
      messages.forEach(take);
      if (state !== null) {
        isLive = true;
        heardAt = new Date();
        drawSoon();
      }
    }
  } finally {
    clearTimeout(timer);
  }
}

function take(message) {
  const fields = {};
  for (const line of message.split('\n')) {
    const colon = line.indexOf(': ');
    if (colon > 0) fields[line.slice(0, colon)] = line.slice(colon + 2);
  }
  if (fields.id) lastEvent = fields.id;
  if (fields.event in heard) heard[fields.event](JSON.parse(fields.data));
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

const shown = () =>
  new Promise((resolve) => {
    if (!document.hidden) resolve();
    else document.addEventListener('visibilitychange', resolve, { once: true });
  });

async function follow() {
  for (;;) {
    const abort = new AbortController();
    let hiding = 0;
    const look = () => {
      clearTimeout(hiding);
      if (document.hidden) hiding = setTimeout(() => abort.abort(), HIDDEN_MS);
    };
    document.addEventListener('visibilitychange', look);
    look();
    let why = '';
    try {
      await listen(abort);
    } catch (error) {
      why = error instanceof TypeError || error.name === 'AbortError' ? '' : `: ${error.message}`;
    }
    document.removeEventListener('visibilitychange', look);
    clearTimeout(hiding);
    if (isLive || why) drawAway(why);
    isLive = false;
    await pause(AGAIN_MS);
    await shown();
  }
}

// -- drawing

let isDue = false;

function drawSoon() {
  if (isDue) return;
  isDue = true;
  requestAnimationFrame(() => {
    isDue = false;
    draw();
  });
}

function drawAway(why) {
  document.body.classList.add('away');
  const last = heardAt === null ? '' : `; last heard at ${clock(heardAt)}`;
  say(byId('connection'), `disconnected, trying again${why}${last}`);
}

function draw() {
  if (!isLive) return;
  document.body.classList.remove('away');
  say(byId('connection'), 'live');
  const problems = problemsOfGateway();
  const amiss = problems.length + countAmiss();
  document.title = `${amiss ? `(${amiss}) ` : ''}${state.gateway}`;
  say(byId('gateway'), state.gateway);
  say(byId('ready'), state.leaving ? 'leaving' : state.ready ? 'ready' : 'not ready');
  set(byId('ready'), 'class', `pill ${state.ready && !state.leaving ? 'good' : 'bad'}`);
  say(byId('about'), `gateway-sidecar ${state.version}, up ${ageOf(state)}${fleet()}`);
  sayLines(byId('problems'), problems);
  const names = Object.keys(state.services).sort();
  for (const name of [...cards.keys()]) if (!(name in state.services)) cards.delete(name);
  for (const name of names) {
    if (!cards.has(name)) cards.set(name, new Card(name));
    cards.get(name).draw(state.services[name]);
  }
  place(byId('services'), [...addressCards(), ...names.map((name) => cards.get(name).element)]);
}

function fleet() {
  if (!state.store) return '';
  const others = Object.entries(state.store.others).map(([name, how]) => (how === 'ready' ? name : `${name} (${how})`));
  return `, shared with ${others.length ? others.join(', ') : 'no other gateway'}`;
}

function problemsOfGateway() {
  const lines = [];
  if (state.leaving) lines.push(`leaving: ${state.leaving}`);
  if (state.nginx) lines.push(`nginx is down: ${state.nginx}`);
  if (state.file === 'differs') lines.push('the configuration file on disk differs from what is in force');
  else if (state.file !== 'in force') lines.push(`the configuration file on disk is ${state.file}`);
  if (state.store && state.store.state !== 'up') {
    lines.push(`the store is ${state.store.state}${state.store.reason ? `: ${state.store.reason}` : ''}`);
  }
  return [...lines, ...state.problems];
}

const isAmiss = (row) => !GOOD.has(row.state) || (row.state === 'serving' && row.reason !== undefined);

function countAmiss() {
  let found = 0;
  for (const service of Object.values(state.services)) {
    found += service.problems.length + Object.values(service.replicas).filter(isAmiss).length;
  }
  return found;
}

const addresses = new Map();

function addressCards() {
  const names = Object.keys(state.addresses).sort();
  for (const name of [...addresses.keys()]) if (!(name in state.addresses)) addresses.delete(name);
  return names.map((name) => {
    if (!addresses.has(name)) {
      const card = make('section', { class: 'card' }, make('div', { class: 'head' }), make('ul', { class: 'problems' }));
      card.firstChild.append(make('h2', {}, name), make('span', { class: 'listen' }), make('span'));
      addresses.set(name, card);
    }
    const card = addresses.get(name);
    const it = state.addresses[name];
    const [, listens, models] = card.firstChild.children;
    say(listens, it.listen.join(', '));
    say(models, `address of ${counted(it.models, 'model')}`);
    const asleep = it.asleep.length ? [`asleep: ${it.asleep.join(', ')}`] : [];
    sayLines(card.lastChild, [...(it.not_in_force ? [`not in force: ${it.not_in_force}`] : []), ...asleep]);
    return card;
  });
}

const order = new Intl.Collator(undefined, { numeric: true });
const COLUMNS = ['replica', 'state', 'for', 'load', 'engine', 'role', 'model', 'reason'];

// One service.
class Card {
  constructor(name) {
    this.name = name;
    this.rows = new Map();
    const id = `service-${cards.size}-${Math.random().toString(36).slice(2)}`;
    this.listen = make('span', { class: 'listen' });
    this.serving = make('strong', { class: 'pill' });
    this.router = make('span');
    this.states = make('span', { class: 'states' });
    this.problems = make('ul', { class: 'problems' });
    this.scaling = make('ul', { class: 'notes' });
    this.plots = PLOTS.map((it) => new Plot(it));
    this.body = make('tbody', { role: 'rowgroup' });
    const titles = COLUMNS.map((it) => make('th', { scope: 'col', role: 'columnheader', class: it }, it));
    this.table = make('table', { role: 'table', 'aria-labelledby': id },
      make('thead', { role: 'rowgroup' }, make('tr', { role: 'row' }, ...titles)), this.body);
    this.more = make('button', { type: 'button', class: 'more' });
    this.more.addEventListener('click', () => {
      if (!expanded.delete(name)) expanded.add(name);
      drawSoon();
    });
    this.element = make('section', { class: 'card', 'aria-labelledby': id },
      make('div', { class: 'head' }, make('h2', { id }, name), this.listen, this.serving, this.router, this.states),
      this.problems, this.scaling,
      make('div', { class: 'plots' }, ...this.plots.map((it) => it.element)),
      make('div', { class: 'scroll' }, this.table), this.more);
  }

  draw(service) {
    const { router } = service;
    say(this.listen, service.listen.join(', '));
    say(this.serving, `${service.serving} of ${service.expected} serve`);
    const isWell = service.serving > 0 && service.serving === service.expected;
    set(this.serving, 'class', `pill ${isWell ? 'good' : service.serving ? 'fair' : 'bad'}`);
    const again = router.restarts ? `, ${counted(router.restarts, 'restart')}` : '';
    say(this.router, `router ${router.type} ${router.state.replace('_', ' ')}${again}`);
    set(this.router, 'class', router.state === 'up' ? '' : 'bad');
    say(this.states, howMany(service.replicas));
    sayLines(this.problems, service.problems);
    sayLines(this.scaling, service.scaling);
    for (const plot of this.plots) plot.draw(service, hour.get(this.name));
    this.drawRows(service.replicas);
  }

  drawRows(replicas) {
    const found = Object.entries(replicas).filter(([, row]) => isWanted(this.name, row));
    const last = (row) => (isAmiss(row) ? 0 : 1);
    found.sort(([, a], [, b]) => last(a) - last(b) || order.compare(a.id, b.id));
    const amiss = found.filter(([, row]) => isAmiss(row)).length;
    const most = filter.words || expanded.has(this.name) ? found.length : Math.max(FEW, amiss);
    const isLong = !filter.words && found.length > Math.max(FEW, amiss);
    const rows = found.slice(0, most).map(([key, row]) => this.rowOf(key, row));
    const kept = new Set(rows);
    for (const [key, row] of this.rows) if (!kept.has(row)) this.rows.delete(key);
    place(this.body, rows);
    this.table.hidden = rows.length === 0;
    const isPlain = found.every(([, row]) => row.role === undefined || row.role === 'regular');
    this.table.classList.toggle('plain', isPlain);
    this.more.hidden = !isLong && rows.length > 0;
    this.more.disabled = rows.length === 0;
    const none = Object.keys(replicas).length ? 'no replica that matches' : 'no replicas';
    const few = expanded.has(this.name) ? 'show fewer' : `show ${found.length - most} more`;
    say(this.more, rows.length ? few : none);
  }

  rowOf(key, row) {
    if (!this.rows.has(key)) {
      const cells = COLUMNS.map((it) => make('td', { role: 'cell', class: it, 'data-title': it }));
      sayWord(cells[0], row.id);
      this.rows.set(key, make('tr', { role: 'row' }, ...cells));
    }
    const element = this.rows.get(key);
    set(element, 'class', row.state);
    const load = row.in_flight === undefined ? '' : row.in_flight.toFixed(0);
    const said = [row.state, ageOf(row), load, row.engine, row.role, row.model, row.reason];
    said.forEach((text, index) => sayWord(element.children[index + 1], text || ''));
    return element;
  }
}

function howMany(replicas) {
  const counts = new Map();
  for (const { state: word } of Object.values(replicas)) counts.set(word, (counts.get(word) || 0) + 1);
  if (counts.size < 2) return '';
  return [...counts].sort(([, a], [, b]) => b - a).map(([word, n]) => `${n} ${word}`).join(', ');
}

// -- plots

const PLOTS = [
  { title: 'requests/s', lines: [['requests', ''], ['errors', 'errors ', 'bad']], say: number,
    now: (it) => [it.requests_per_s, it.errors_per_s] },
  { title: 'in flight', lines: [['in_flight', ''], ['waiting', 'waiting ', 'bad']], say: number,
    now: (it) => [it.in_flight, it.waiting] },
  { title: 'first token', lines: [['ttft_p50', 'p50 '], ['ttft_p99', 'p99 ', 'high']], say: duration,
    now: (it) => [it.ttft_p50_s, it.ttft_p99_s] },
  { title: 'whole answer', lines: [['took_p50', 'p50 '], ['took_p99', 'p99 ', 'high']], say: duration, now: () => [] },
];
const WIDTH = 360;
const HEIGHT = 60;
const LEAST_BAD = 3; // However few errors there are beside all requests, they are seen.

// One plot: two measures of the last hour.
class Plot {
  constructor(kind) {
    this.kind = kind;
    this.title = make('span', { class: 'title' }, kind.title);
    this.values = kind.lines.map(([, , look]) => make('span', { class: look || 'main' }));
    this.most = make('span', { class: 'most' });
    this.svg = drawn('svg', { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: 'none', role: 'img' });
    this.paths = kind.lines.map(([, , look]) => drawn('path', { class: look || 'main' }));
    this.mark = drawn('path', { class: 'mark' });
    this.svg.append(drawn('path', { class: 'grid', d: `M0 0H${WIDTH}M0 ${HEIGHT / 2}H${WIDTH}M0 ${HEIGHT}H${WIDTH}` }));
    this.svg.append(...[...this.paths].reverse(), this.mark);
    this.when = make('span', { class: 'when' });
    this.element = make('figure', { class: 'plot' },
      make('figcaption', {}, this.title, ...this.values), make('div', { class: 'canvas' }, this.svg, this.most),
      make('div', { class: 'axis' }, make('span', {}, '1 h ago'), this.when, make('span', {}, 'now')));
    this.svg.addEventListener('pointermove', (event) => this.point(event));
    this.svg.addEventListener('pointerleave', () => this.point(null));
    this.at = null;
  }

  draw(service, history) {
    this.service = service;
    this.history = history;
    const { lines } = this.kind;
    const values = lines.map(([measure]) => (history ? history.measures[measure] : []));
    const top = ceiling(Math.max(0, ...values.flat().filter((it) => it !== null)));
    const now = seconds();
    values.forEach((column, index) => {
      const isBad = lines[index][2] === 'bad';
      set(this.paths[index], 'd', history ? pathOf(history.at, column, top, now, isBad) : '');
    });
    say(this.most, top ? this.kind.say(top) : '');
    this.sayValues();
  }

  point(event) {
    this.at = null;
    if (event !== null && this.history && this.history.at.length) {
      const box = this.svg.getBoundingClientRect();
      const at = seconds() - HOUR_S * (1 - (event.clientX - box.left) / box.width);
      const distance = this.history.at.map((it) => Math.abs(it - at));
      const nearest = distance.indexOf(Math.min(...distance));
      if (distance[nearest] < HOUR_S / 60) this.at = nearest;
    }
    this.sayValues();
  }

  sayValues() {
    const { lines } = this.kind;
    const isNow = this.at === null || !this.history || this.at >= this.history.at.length;
    const last = (measure) => (this.history ? this.history.measures[measure].at(-1) : undefined);
    const current = this.kind.now(this.service);
    lines.forEach(([measure, word], index) => {
      const value = isNow ? current[index] ?? last(measure) : this.history.measures[measure][this.at];
      say(this.values[index], word + this.kind.say(value));
      this.values[index].classList.toggle('none', !value);
    });
    const s = isNow ? 0 : seconds() - this.history.at[this.at];
    const x = (WIDTH * (1 - s / HOUR_S)).toFixed(1);
    set(this.mark, 'd', isNow ? '' : `M${x} 0V${HEIGHT}`);
    say(this.when, isNow ? '' : clock(new Date(Date.now() - s * 1000)));
    set(this.svg, 'aria-label', `${this.kind.title} of the last hour: ${this.values.map((it) => it.textContent).join(', ')}`);
  }
}

// A round number that is not below.
function ceiling(value) {
  if (value <= 0) return 0;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].find((it) => it * power >= value * 0.999) * power;
}

// A line with a gap where nothing is known, or where there is nothing bad.
function pathOf(at, values, top, now, isBad) {
  let path = '';
  let isOpen = false;
  values.forEach((value, index) => {
    const x = WIDTH * (1 - (now - at[index]) / HOUR_S);
    if (value === null || x < 0 || (isBad && value === 0)) {
      isOpen = false;
      return;
    }
    const least = isBad ? LEAST_BAD : 0;
    const y = HEIGHT - Math.max(least, top ? (HEIGHT - 2) * (value / top) : 0) - 1;
    path += `${isOpen ? 'L' : `M${x.toFixed(1)} ${y.toFixed(1)}L`}${x.toFixed(1)} ${y.toFixed(1)}`;
    isOpen = true;
  });
  return path;
}

// -- events

const LOUD = new Set(['warning', 'error', 'critical']);
const TOLD = new Set(['seq', 'timestamp', 'level', 'event', 'service', 'replica', 'reason']);

function isEventWanted(it) {
  if (it.event === 'more') return !filter.words;
  if (filter.only && !LOUD.has(it.level)) return false;
  return matches([it.event, it.level, it.service, it.replica, it.reason]);
}

// `over_s: 2.1` is `over 2.1 s`.
function inWords(key, value) {
  const isTime = key.endsWith('_s');
  return `${(isTime ? key.slice(0, -2) : key).replaceAll('_', ' ')} ${value}${isTime ? ' s' : ''}`;
}

// fresh: so many are new at the end of the log; all where it is not said.
function drawEvents(fresh = log.length) {
  const list = byId('log');
  const wanted = log.slice(Math.max(0, log.length - Math.max(fresh, 0))).filter(isEventWanted);
  const items = wanted.slice(-MOST_EVENTS).map(eventItem).reverse();
  if (fresh >= log.length) list.replaceChildren(...items);
  else list.prepend(...items);
  while (list.children.length > MOST_EVENTS) list.lastChild.remove();
}

function eventItem(it) {
  if (it.event === 'more') {
    return make('li', { class: 'skipped' }, `at least ${it.skipped} more; \`gateway-sidecar events\` has them`);
  }
  const about = [it.service, it.replica].filter((word) => word && word !== '-').join('/');
  const rest = Object.entries(it).filter(([key]) => !TOLD.has(key)).map(([key, value]) => inWords(key, value));
  const line = make('summary', {},
    make('time', { datetime: it.timestamp }, clock(new Date(it.timestamp))), make('strong', {}, it.event));
  const subject = make('span', { class: 'about' });
  sayWord(subject, about);
  if (about) line.append(subject);
  line.append(make('span', { class: 'why' }, [it.reason, ...rest].filter(Boolean).join(', ')));
  const details = make('details', {}, line);
  details.addEventListener('toggle', () => {
    if (details.children.length > 1) return;
    const [meaning, cure] = meanings[it.event] || ['No more is known of this event.'];
    details.append(make('p', {}, meaning.replaceAll('`', '')));
    if (cure) details.append(make('p', {}, `What to do: ${cure.replaceAll('`', '')}`));
  });
  return make('li', { class: it.level }, details);
}

// -- the filter, which is the browser's alone

const filter = { words: '', only: false };

const matches = (texts) => {
  const all = texts.filter(Boolean).join(' ').toLowerCase();
  return filter.words.split(' ').every((word) => all.includes(word));
};

function isWanted(service, row) {
  if (filter.only && !isAmiss(row)) return false;
  return matches([service, row.id, row.state, row.engine, row.role, row.model, row.reason]);
}

function refilter() {
  filter.words = byId('words').value.trim().toLowerCase();
  filter.only = byId('only').checked;
  drawEvents();
  if (state !== null) drawSoon();
}

byId('filter').addEventListener('input', refilter);
byId('filter').addEventListener('submit', (event) => event.preventDefault());
fetch('page/events.json').then((answer) => answer.json()).then((said) => { meanings = said; }, () => {});
setInterval(() => isLive && !document.hidden && draw(), 1000);
refilter();
follow();
