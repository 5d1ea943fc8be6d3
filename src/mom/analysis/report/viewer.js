"use strict";
// The token path viewer. It shows the JSON in #data, which mom/analysis/report/page.py writes; text is inserted only
// as textContent. All tokens share a listener.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const element = (id) => document.getElementById(id);
  const text = element("text"), path = element("path"), status = element("status"), legend = element("legend");
  const count = data.count, kinds = data.kinds, number = new Intl.NumberFormat("en");
  const pools = Object.keys(kinds); // in the order of a round
  const BINS = 7;

  // Columns are little-endian arrays in base64; real numbers are stored as 16-bit steps between two bounds.
  const TYPES = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array };
  function column(packed) {
    const bytes = Uint8Array.from(atob(packed.data), (character) => character.charCodeAt(0));
    const values = new TYPES[packed.type](bytes.buffer);
    if (packed.low === undefined) return values;
    const step = (packed.high - packed.low) / packed.steps;
    return Float32Array.from(values, (value) => (value > packed.steps ? NaN : packed.low + value * step));
  }
  const piece = column(data.piece), windowOf = column(data.window), position = column(data.position);
  const documentOf = column(data.document), tokenId = column(data.token_id);
  const nextOf = column(data.next), predictedOf = column(data.predicted), right = column(data.right);
  const probability = column(data.probability), best = column(data.best);
  const measures = data.measures.map((measure) => ({ ...measure, values: column(measure.values) }));
  const choice = {}, weight = {};
  for (const pool of pools) {
    choice[pool] = column(kinds[pool].choice);
    weight[pool] = column(kinds[pool].weight);
  }
  const rounds = data.rounds; // [stage, round] of each recorded round
  const severalStages = rounds.length > 0 && rounds[rounds.length - 1][0] !== rounds[0][0];
  const roundName = ([stage, round]) => (severalStages ? `${stage}.${round}` : `${round}`);

  // ---- the text

  const cells = new Array(count);
  function visible(string) {
    return string.replace(/[\u0000-\u0008\u000b-\u001f]/g, (code) => String.fromCharCode(0x2400 + code.charCodeAt(0)))
      .replaceAll("\n", "⏎\n");
  }
  function spoken(string) {
    if (string === "") return "part of a character";
    if (string.trim() !== "") return string;
    const lines = string.split("\n").length - 1;
    const spaces = string.length - lines;
    return [lines && `${lines} line end${lines > 1 ? "s" : ""}`, spaces && `${spaces} space${spaces > 1 ? "s" : ""}`]
      .filter(Boolean).join(" and ");
  }
  function build() {
    const all = document.createDocumentFragment();
    let body = null;
    for (let index = 0; index < count; index++) {
      if (index === 0 || windowOf[index] !== windowOf[index - 1]) {
        const group = document.createElement("div");
        group.className = "window";
        group.setAttribute("role", "group");
        group.setAttribute("aria-label", `Window ${windowOf[index]}`);
        const name = document.createElement("div");
        name.className = "name";
        name.setAttribute("aria-hidden", "true");
        name.textContent = `window ${windowOf[index]} · document ${documentOf[index]}`;
        body = document.createElement("div");
        body.className = "body";
        body.setAttribute("role", "presentation");
        group.append(name, body);
        all.append(group);
      }
      const string = data.pieces[piece[index]];
      const cell = document.createElement("span");
      cell.index = index;
      cell.id = `t${index}`;
      cell.setAttribute("role", "option");
      cell.setAttribute("aria-selected", "false");
      cell.tabIndex = -1;
      if (string === "") cell.dataset.mark = "▯";
      else cell.textContent = visible(string);
      if (string.trim() === "") cell.setAttribute("aria-label", spoken(string));
      cells[index] = cell;
      body.append(cell);
    }
    text.replaceChildren(all);
  }

  // ---- colors

  function bins(values) {
    const sorted = values.filter((value) => !Number.isNaN(value)).sort();
    const distinct = [];
    for (const value of sorted) {
      if (!distinct.length || value !== distinct[distinct.length - 1]) distinct.push(value);
      if (distinct.length > BINS) break;
    }
    if (distinct.length <= BINS) return { lows: distinct, exact: true };
    // Bins lie between the 1st and the 99th percentile, so that a few extremes do not use up all colors.
    const low = sorted[Math.floor(0.01 * (sorted.length - 1))];
    const high = sorted[Math.ceil(0.99 * (sorted.length - 1))];
    const step = (high - low) / BINS || 1;
    return { lows: Array.from({ length: BINS }, (_, bin) => low + bin * step), exact: false };
  }
  function color() {
    const { values, digits } = measures[element("color").selectedIndex];
    const { lows, exact } = bins(values);
    const class_of = (bin) => `c${exact && lows.length > 1 ? Math.round(bin * (BINS - 1) / (lows.length - 1)) : bin}`;
    for (let index = 0; index < count; index++) {
      let bin = 0;
      while (bin + 1 < lows.length && values[index] >= lows[bin + 1]) bin++;
      const matched = cells[index].classList.contains("match");
      cells[index].className = `token ${Number.isNaN(values[index]) ? "none" : class_of(bin)}`
        + (cells[index].dataset.mark ? " mark" : "") + (matched ? " match" : "");
    }
    const show = (value) => value.toFixed(digits);
    legend.replaceChildren(...lows.map((low, bin) => {
      const item = document.createElement("span");
      const swatch = document.createElement("span");
      swatch.className = `swatch ${class_of(bin)}`;
      let label = show(low);
      if (!exact) {
        label = bin === 0 ? `below ${show(lows[1])}` : bin === BINS - 1 ? `${show(low)} and above`
          : `${show(low)} to ${show(lows[bin + 1])}`;
      }
      item.append(swatch, label);
      return item;
    }));
  }

  // ---- one token's path

  let chosen = -1, focused = 0;
  const quoted = (index) => `“${spoken(data.pieces[piece[index]])}”`;
  function make(name, content, attributes = {}) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...[content].flat());
    return made;
  }
  function choicesOf(index, round, kind) {
    const size = kinds[kind].places;
    const first = (index * rounds.length + round) * size;
    return Array.from({ length: size }, (_, place) => [choice[kind][first + place], weight[kind][first + place]]);
  }
  function step(index, round, kind) {
    const choices = choicesOf(index, round, kind), none = kinds[kind].modules;
    if (choices.every(([slot]) => slot === none)) {
      return make("div", [make("span", "SKIP", { class: "slot" }), make("span", "nothing", { class: "nothing" })],
        { class: "choice skip" });
    }
    return choices.map(([slot, share]) => {
      const skip = slot === none;
      const line = make("div", [
        make("span", skip ? "SKIP" : `${slot}`, { class: "slot" }),
        make("span", share.toFixed(3), { class: "weight" }),
      ], { class: `choice ${skip ? "skip" : "ran"}` });
      if (!skip) line.style.setProperty("--weight", `${Math.min(100, Math.max(0, 100 * share)).toFixed(1)}%`);
      return line;
    });
  }
  const percent = (share) => (share >= 0.9995 ? "100%" : `${(100 * share).toPrecision(share < 0.001 ? 1 : 3)}%`);
  const shown = (string) => make("span", string.trim() === "" ? spoken(string) : visible(string), { class: "quoted" });
  // The token that follows and the one that the model holds for most likely.
  function following(index) {
    if (Number.isNaN(probability[index])) return [make("p", "Nothing is predicted after this token.", { class: "nothing" })];
    const rows = [["next token", nextOf[index], probability[index]]];
    if (right[index]) rows[0][0] = "next token, as predicted";
    else rows.push(["predicted instead", predictedOf[index], best[index]]);
    return [make("div", rows.flatMap(([what, string, share]) => [
      make("span", what, { class: "what" }), make("span", shown(data.pieces[string])), make("span", percent(share), { class: "share" }),
    ]), { class: "next" })];
  }
  function plain(blocks) {
    return make("tr", make("td", blocks, { colspan: `${1 + pools.length}` }), { class: "plain" });
  }
  const capitalized = (string) => string[0].toUpperCase() + string.slice(1);
  const blocks = (size, name) => `${size} ${name} block${size > 1 ? "s" : ""}`;
  function describe(index) {
    const facts = make("dl", [
      ["token", `${number.format(index)} (id ${tokenId[index]})`],
      ["window, position", `${windowOf[index]}, ${position[index]}`],
      ["document", `${documentOf[index]}`],
      ...measures.map(({ name, values, digits }) =>
        [name, Number.isNaN(values[index]) ? "none (end of the window)" : values[index].toFixed(digits)]),
    ].flatMap(([name, value]) => [make("dt", name), make("dd", value)]));
    const rows = [];
    if (data.bottom) rows.push(plain(blocks(data.bottom, "bottom")));
    rounds.forEach(([stage], round) => {
      rows.push(make("tr", [
        make("th", roundName(rounds[round]), { scope: "row" }),
        ...pools.map((pool) => make("td", step(index, round, pool))),
      ], { "data-round": round }));
      const last = round + 1 === rounds.length || rounds[round + 1][0] !== stage;
      if (last && data.anchors) rows.push(plain("anchor block"));
    });
    if (data.top) rows.push(plain(blocks(data.top, "top")));
    const head = make("thead", make("tr", ["Round", ...pools.map((pool) => capitalized(kinds[pool].label))].map((name) => make("th", name, { scope: "col" }))));
    const caption = make("caption", [make("strong", ["Path of ", shown(data.pieces[piece[index]])])]);
    path.replaceChildren(...following(index), make("table", [caption, head, make("tbody", rows)]), facts);
    path.scrollTop = 0;
  }
  function choose(index) {
    if (chosen >= 0) cells[chosen].setAttribute("aria-selected", "false");
    chosen = index;
    cells[index].setAttribute("aria-selected", "true");
    focus(index, false);
    describe(index);
    element("viewer").scrollIntoView({ block: "nearest" });
    cells[index].scrollIntoView({ block: "nearest" });
    const measure = measures[element("color").selectedIndex];
    const value = measure.values[index];
    status.textContent = `Token ${number.format(index)} of ${number.format(count)}: ${quoted(index)}`
      + (Number.isNaN(value) ? "." : `, ${measure.name} ${value.toFixed(measure.digits)}.`)
      + (Number.isNaN(probability[index]) ? "" : ` Next token “${spoken(data.pieces[nextOf[index]])}”, ${percent(probability[index])}`
        + (right[index] ? ", as predicted." : `; predicted “${spoken(data.pieces[predictedOf[index]])}”, ${percent(best[index])}.`));
  }
  function focus(index, move = true) {
    cells[focused].tabIndex = -1;
    focused = index;
    cells[index].tabIndex = 0;
    if (move) {
      cells[index].focus({ preventScroll: true });
      cells[index].scrollIntoView({ block: "nearest" });
    }
  }

  // ---- keys

  function vertical(index, direction) {
    const from = cells[index].getClientRects()[0];
    if (!from) return index;
    const middle = (from.left + from.right) / 2;
    let best = index, line = null, distance = Infinity;
    for (let other = index + direction; other >= 0 && other < count; other += direction) {
      const box = cells[other].getClientRects()[0];
      if (!box || (direction > 0 ? box.top < from.bottom - 1 : box.bottom > from.top + 1)) continue;
      if (line === null) line = box.top;
      if (Math.abs(box.top - line) > 2) break;
      const away = Math.abs((box.left + box.right) / 2 - middle);
      if (away < distance) [best, distance] = [other, away];
    }
    return best;
  }
  function windowEdge(index, direction) {
    let other = index;
    if (direction < 0) {
      while (other > 0 && windowOf[other - 1] === windowOf[index]) other--;
      return other === index && index > 0 ? windowEdge(index - 1, -1) : other;
    }
    while (other < count - 1 && windowOf[other] === windowOf[index]) other++;
    return other;
  }
  const KEYS = {
    ArrowRight: (index) => Math.min(index + 1, count - 1),
    ArrowLeft: (index) => Math.max(index - 1, 0),
    ArrowDown: (index) => vertical(index, 1),
    ArrowUp: (index) => vertical(index, -1),
    PageDown: (index) => windowEdge(index, 1),
    PageUp: (index) => windowEdge(index, -1),
    Home: () => 0,
    End: () => count - 1,
  };
  text.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.index === undefined) return;
    if (event.key === "Enter" || event.key === " ") choose(event.target.index);
    else if (event.key in KEYS) focus(KEYS[event.key](event.target.index));
    else return;
    event.preventDefault();
  });
  text.addEventListener("click", (event) => {
    const cell = event.target.closest(".token");
    if (cell) {
      choose(cell.index);
      cell.focus({ preventScroll: true });
    }
  });

  // ---- the filter

  const kindMenu = element("filter-kind"), moduleMenu = element("filter-module"), roundMenu = element("filter-round");
  const firstOnly = element("filter-first");
  let matches = [];
  function fill(menu, options) {
    menu.replaceChildren(...options.map(([value, label]) => new Option(label, value)));
  }
  function fillModules() {
    const { modules } = kinds[kindMenu.value];
    fill(moduleMenu, [["", "(none)"], ...Array.from({ length: modules }, (_, slot) => [slot, `${slot}`]),
      [modules, "SKIP"]]);
  }
  function fillRounds() {
    const stages = [...new Set(rounds.map(([stage]) => stage))];
    const of = (stage) => (severalStages ? ` of stage ${stage}` : "");
    fill(roundMenu, [
      // Over all rounds, nearly every token takes every module some time.
      ...stages.map((stage) => [`m${stage}`, `at least half of the rounds${of(stage)}`]),
      ...stages.map((stage) => [`s${stage}`, `any round${of(stage)}`]),
      ...rounds.map((names, round) => [`r${round}`, `round ${roundName(names)}`]),
    ]);
  }
  function wantedRounds() {
    const place = Number(roundMenu.value.slice(1));
    if (roundMenu.value[0] === "r") return [place];
    return rounds.flatMap(([stage], round) => (stage === place ? [round] : []));
  }
  function filter() {
    const slot = moduleMenu.value, kind = kindMenu.value;
    matches = [];
    if (slot !== "") {
      const wanted = wantedRounds(), size = kinds[kind].places, slots = choice[kind];
      const counted = firstOnly.checked ? 1 : size; // assignments to check, best first
      const needed = roundMenu.value[0] === "m" ? Math.ceil(wanted.length / 2) : 1;
      for (let index = 0; index < count; index++) {
        let times = 0;
        for (const round of wanted) {
          const first = (index * rounds.length + round) * size;
          if (slots.subarray(first, first + counted).includes(Number(slot))) times++;
        }
        const took = times >= needed;
        cells[index].classList.toggle("match", took);
        if (took) matches.push(index);
      }
      const module = Number(slot) === kinds[kind].modules ? `SKIP in ${kinds[kind].label}` : `${kinds[kind].label} ${slot}`;
      const where = roundMenu.selectedOptions[0].text;
      status.textContent = `${number.format(matches.length)} of ${number.format(count)} tokens took ${module}${firstOnly.checked ? " first" : ""} in ${where}.`;
    } else {
      for (const cell of cells) cell.classList.remove("match");
      status.textContent = "";
    }
    text.classList.toggle("filtered", slot !== "");
    for (const id of ["match-next", "match-previous"]) element(id).disabled = matches.length === 0;
  }
  function go(direction) {
    const after = matches.findIndex((index) => index > focused);
    const before = matches.findLastIndex((index) => index < focused);
    const place = direction > 0 ? (after < 0 ? 0 : after) : before < 0 ? matches.length - 1 : before;
    choose(matches[place]);
    cells[matches[place]].scrollIntoView({ block: "center" });
    status.textContent = `Match ${number.format(place + 1)} of ${number.format(matches.length)}. ${status.textContent}`;
  }
  kindMenu.addEventListener("change", () => { fillModules(); filter(); });
  moduleMenu.addEventListener("change", filter);
  roundMenu.addEventListener("change", filter);
  firstOnly.addEventListener("change", filter);
  element("filter-clear").addEventListener("click", () => { moduleMenu.value = ""; filter(); });
  element("match-next").addEventListener("click", () => go(1));
  element("match-previous").addEventListener("click", () => go(-1));
  element("modules").addEventListener("click", (event) => {
    const button = event.target.closest(".show");
    if (!button) return;
    kindMenu.value = button.dataset.kind;
    fillModules();
    moduleMenu.value = button.dataset.module;
    roundMenu.value = `m${button.dataset.stage}`;
    firstOnly.checked = true;
    filter();
    element("tokens").scrollIntoView();
    if (matches.length) go(matches[0] === focused ? -1 : 1);
  });

  // ---- start

  fill(kindMenu, pools.map((pool) => [pool, kinds[pool].label]));
  fillModules();
  fillRounds();
  fill(element("color"), measures.map(({ name }, index) => [index, name]));
  element("color").selectedIndex = data.colored_by;
  element("color").addEventListener("change", color);
  build();
  color();
  if (count) {
    cells[0].tabIndex = 0;
    cells[0].setAttribute("aria-selected", "true");
    chosen = 0;
    describe(0);
  }
})();
