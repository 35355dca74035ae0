"use strict";
(() => {
  const page = JSON.parse(document.getElementById("data").textContent);
  // From worst to best: a square shows the first that any of its cells has.
  const VERDICTS = [
    ["crashed", "crashed", "†"], ["timed-out", "timed out", "∞"], ["differs", "differs", "≠"], ["no-device", "no device", "?"],
    ["unsupported", "unsupported", "∅"], ["known", "differs, as listed", "(≠)"], ["edge", "at the edge of the range", "⌃"], ["within-bound", "within bound", "≈"], ["identical", "same bits", "="],
  ];
  const NAME = Object.fromEntries(VERDICTS.map(([key, name]) => [key, name]));
  const SIGN = Object.fromEntries(VERDICTS.map(([key, , sign]) => [key, sign]));
  const RANK = Object.fromEntries(VERDICTS.map(([key], rank) => [key, rank]));
  const cells = page.cells.map((row, at) => {
    const text = (place) => page.strings[row[place]];
    const [pair, transform, world, dtype, device, data, verdict] = [0, 1, 2, 3, 4, 5, 6].map(text);
    return { at, pair, transform, world, dtype, device, data, verdict, ratio: row[7], histogram: row[8], detail: page.details[at] || null };
  });
  const many = new Set(cells.map((cell) => cell.pair)).size > 1;
  const VIEWS = {
    transform: ["by transform", (cell) => cell.transform],
    world: ["by world and dtype", (cell) => cell.world + " " + cell.dtype],
    data: ["by data", (cell) => cell.data],
  };
  if (!many) delete VIEWS.transform;
  const rowOf = many ? (cell) => cell.pair : (cell) => cell.transform;
  const groupOf = (cell) => (many ? (page.pairs[cell.pair] || {}).group || "" : "");

  const $ = (id) => document.getElementById(id);
  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "onclick") node.addEventListener("click", value);
      else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  };
  const drawing = (tag, attributes, ...children) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  };
  const mark = (verdict) => make("span", { class: "mark v-" + verdict, "aria-hidden": "true" }, SIGN[verdict]);
  const count = (number, noun) => number.toLocaleString("en") + " " + noun + (number === 1 ? "" : "s");
  const group = (list, key) => {
    const found = new Map();
    for (const item of list) {
      const at = key(item);
      if (!found.has(at)) found.set(at, []);
      found.get(at).push(item);
    }
    return found;
  };
  const brief = (value) => (typeof value === "number" ? (Math.abs(value) >= 1e4 || (value !== 0 && Math.abs(value) < 1e-3) ? value.toExponential(3) : String(+value.toPrecision(6))) : String(value));

  // Notes may name documentation: an address becomes a link, all else stays text.
  const linked = (text) => text.split(/(https:\/\/[^\s<>"']*[^\s<>"'.,;:)])/).map((part, at) =>
    at % 2 ? make("a", { href: part, rel: "noreferrer noopener", target: "_blank" }, part.replace(/^https:\/\/(www\.)?/, "")) : part);

  // ---- what is asked for -------------------------------------------------------------------------------------
  const state = { query: "", off: new Set(), view: Object.keys(VIEWS)[0], open: null };
  const restore = () => {
    const given = new URLSearchParams(location.hash.slice(1));
    state.query = given.get("q") || "";
    state.off = new Set((given.get("hide") || "").split(",").filter((key) => key in NAME));
    if (given.get("by") in VIEWS) state.view = given.get("by");
    return (given.get("open") || "").split("|");
  };
  const remember = () => {
    const kept = new URLSearchParams();
    if (state.query) kept.set("q", state.query);
    if (state.off.size) kept.set("hide", [...state.off].join(","));
    if (state.view !== Object.keys(VIEWS)[0]) kept.set("by", state.view);
    if (state.open !== null) kept.set("open", state.open.replace("\n", "|"));
    try { history.replaceState(null, "", kept.size ? "#" + kept : location.pathname + location.search); } catch { /* a page without an address of its own */ }
  };
  const words = (cell) => {
    if (cell.words === undefined) {
      const pair = page.pairs[cell.pair] || {}, detail = cell.detail || {}, cause = detail.diagnosis || {};
      cell.words = [cell.pair, pair.group, pair.note, pair.torch, pair.jax, cell.transform, cell.world, cell.dtype, cell.device, cell.data,
        NAME[cell.verdict], detail.reason, cause.cause, cause.text, cause.fix].filter(Boolean).join("\n").toLowerCase();
    }
    return cell.words;
  };
  const chosen = () => {
    const asked = state.query.toLowerCase().split(/\s+/).filter(Boolean);
    return cells.filter((cell) => !state.off.has(cell.verdict) && asked.every((word) => words(cell).includes(word)));
  };

  // ---- the matrix --------------------------------------------------------------------------------------------
  const worst = (list) => list.reduce((seen, cell) => (RANK[cell.verdict] < RANK[seen] ? cell.verdict : seen), "identical");
  const label = (row, column, list) => {
    const counts = group(list, (cell) => cell.verdict);
    const parts = VERDICTS.filter(([key]) => counts.has(key)).map(([key, name]) => counts.get(key).length + " " + name);
    return row + ", " + column + ": " + parts.join(", ");
  };
  let squares = new Map();
  const matrix = (list) => {
    const [, columnOf] = VIEWS[state.view];
    const columns = [...new Set(list.map(columnOf))];
    const tall = columns.length > 9;
    const head = make("tr", {}, make("th", { scope: "col" }, many ? "pair" : "transform"),
      ...columns.map((name) => make("th", { scope: "col", class: tall ? "tall" : "", style: "width:" + 100 / columns.length + "%" }, make("span", {}, name))));
    const body = make("tbody");
    squares = new Map();
    let line = 0;
    for (const [name, inGroup] of group(list, groupOf)) {
      if (name) body.append(make("tr", {}, make("th", { scope: "rowgroup", colspan: columns.length + 1 }, name)));
      for (const [row, inRow] of group(inGroup, rowOf)) {
        const byColumn = group(inRow, columnOf);
        const entries = columns.map((column, place) => {
          const held = byColumn.get(column);
          if (!held) return make("td", { class: "none" }, make("span", { "aria-label": "not run" }, "·"));
          const verdict = worst(held), same = held.filter((cell) => cell.verdict === verdict).length;
          const square = make("button", { type: "button", class: "square v-" + verdict, tabindex: "-1", "aria-expanded": "false", "aria-controls": "detail",
            "aria-label": label(row, column, held), title: label(row, column, held), onclick: () => show(row, column) },
          SIGN[verdict], same < held.length && RANK[verdict] < RANK["within-bound"] ? make("small", {}, String(same)) : null);
          square.place = [line, place];
          squares.set(row + "\n" + column, { square, held, row, column });
          return make("td", {}, square);
        });
        body.append(make("tr", {}, make("th", { scope: "row", title: row }, row), ...entries));
        line += 1;
      }
    }
    const box = $("matrix");
    box.replaceChildren(list.length
      ? make("table", { class: "matrix", "aria-label": "Verdicts of the cells" }, make("thead", {}, head), body)
      : make("p", { class: "empty" }, "No cell is all of that. Clear the search, or switch a verdict on."));
    const first = box.querySelector(".square");
    if (first) first.tabIndex = 0;
  };
  const reach = (square) => {
    for (const other of $("matrix").querySelectorAll('.square[tabindex="0"]')) other.tabIndex = -1;
    square.tabIndex = 0;
    square.focus();
  };
  $("matrix").addEventListener("focusin", (event) => {
    if (!event.target.classList.contains("square")) return;
    for (const other of $("matrix").querySelectorAll('.square[tabindex="0"]')) other.tabIndex = -1;
    event.target.tabIndex = 0;
  });
  $("matrix").addEventListener("keydown", (event) => {
    const at = event.target.place;
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!at || (!step && event.key !== "Home" && event.key !== "End")) return;
    event.preventDefault();
    const all = [...squares.values()].map((entry) => entry.square);
    const ahead = (square) => {
      const [down, right] = [square.place[0] - at[0], square.place[1] - at[1]];
      if (event.key === "Home" || event.key === "End") return down === 0 && square !== event.target ? 1 : 0;
      return step[0] ? (right === 0 && down * step[0] > 0 ? down * step[0] : 0) : (down === 0 && right * step[1] > 0 ? right * step[1] : 0);
    };
    const candidates = all.filter((square) => ahead(square) > 0);
    if (!candidates.length) return;
    const far = (square) => (event.key === "Home" ? square.place[1] : event.key === "End" ? -square.place[1] : ahead(square));
    reach(candidates.reduce((best, square) => (far(square) < far(best) ? square : best)));
  });

  // ---- detail ------------------------------------------------------------------------------------------------
  const terms = (kind, entries) => make("dl", { class: kind }, ...entries.filter(([, value]) => value !== null && value !== undefined && value !== "").flatMap(
    ([term, value]) => [make("dt", {}, term), make("dd", {}, value)]));
  const program = (pair) => terms("code", [["torch", (page.pairs[pair] || {}).torch], ["jax", (page.pairs[pair] || {}).jax]]);
  const rerun = (command) => {
    const button = make("button", { type: "button", class: "button", onclick: async () => {
      try { await navigator.clipboard.writeText(command); button.textContent = "copied"; } catch { button.textContent = "select it, please"; }
    } }, "copy");
    return make("div", { class: "rerun" }, make("code", {}, command), button);
  };
  const card = (list) => {
    const cell = list[0], detail = cell.detail, cause = detail.diagnosis;
    const where = detail.output === undefined || detail.output === null ? null : detail.output + (detail.index && detail.index.length ? "[" + detail.index.join(", ") + "]" : "");
    const places = [...new Set(list.map((one) => [one.world, one.dtype, one.data].filter(Boolean).join(" · ")))];
    return make("section", { class: "card" },
      make("h3", {}, mark(cell.verdict), " ", NAME[cell.verdict], list.length > 1 ? " in " + count(list.length, "cell") : ""),
      make("p", { class: "where" }, places.slice(0, 6).join(", ") + (places.length > 6 ? ", and " + (places.length - 6) + " more" : "")),
      cause ? make("p", {}, ...linked(cause.text)) : null,
      detail.reason && (!cause || !cause.text.includes(detail.reason)) ? make("p", { class: "note" }, ...linked(detail.reason)) : null,
      cause && cause.fix ? make("p", { class: "fix" }, ...linked(cause.fix)) : null,
      terms("numbers", [["worst element", where], ["got", brief(detail.got ?? "")], ["want", brief(detail.want ?? "")],
        ["error / bound", cell.ratio === null ? null : brief(cell.ratio)], ["RMS jax / torch", detail.twin_ratio === undefined || detail.twin_ratio === null ? null : brief(detail.twin_ratio)],
        ["judged by", detail.judged], ["seed", detail.seed === undefined ? null : String(detail.seed)], ["inputs", detail.inputs_sha256 ? detail.inputs_sha256.slice(0, 16) : null]]),
      detail.rerun ? rerun(detail.rerun) : null);
  };
  const close = (back = true) => {
    if (state.open === null) return;
    const entry = squares.get(state.open);
    state.open = null;
    $("detail").hidden = true;
    document.querySelector(".split").classList.remove("open");
    if (entry) entry.square.setAttribute("aria-expanded", "false");
    if (entry && back) reach(entry.square);
    remember();
  };
  const show = (row, column) => {
    close(false);
    const key = row + "\n" + column, entry = squares.get(key);
    if (!entry) return;
    state.open = key;
    entry.square.setAttribute("aria-expanded", "true");
    const told = entry.held.filter((cell) => cell.detail).sort((a, b) => RANK[a.verdict] - RANK[b.verdict]);
    const alike = group(told, (cell) => [cell.verdict, cell.detail.reason, (cell.detail.diagnosis || {}).cause].join("\n"));
    const pair = entry.held[0].pair, about = page.pairs[pair] || {};
    const title = make("h3", { tabindex: "-1" }, row + " · " + column);
    // Only what varies among these cells is a column.
    const varies = ["transform", "world", "dtype", "device", "data"].filter((field) => new Set(entry.held.map((cell) => cell[field])).size > 1);
    const table = make("table", { class: "rows" },
      make("thead", {}, make("tr", {}, make("th", { scope: "col" }, make("span", { "aria-label": "verdict" })), ...varies.map((field) => make("th", { scope: "col" }, field)), make("th", { scope: "col" }, "error / bound"))),
      make("tbody", {}, ...[...entry.held].sort((a, b) => RANK[a.verdict] - RANK[b.verdict]).map((cell) => make("tr", {},
        make("td", {}, make("span", { class: "mark v-" + cell.verdict, title: NAME[cell.verdict], role: "img", "aria-label": NAME[cell.verdict] }, SIGN[cell.verdict])),
        ...varies.map((field) => make("td", {}, cell[field])), make("td", {}, cell.ratio === null ? "" : brief(cell.ratio))))));
    $("detail").replaceChildren(
      make("div", { class: "bar" }, title, make("button", { type: "button", class: "button", onclick: () => close(), "aria-label": "Close the detail" }, "Close")),
      program(pair), about.note ? make("p", { class: "note" }, ...linked(about.note)) : "",
      ...[...alike.values()].map(card), table, chart(entry.held, "Errors in these cells") || "");
    $("detail").hidden = false;
    $("detail").scrollTop = 0;
    document.querySelector(".split").classList.add("open");
    title.focus({ preventScroll: true });
    remember();
  };
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && state.open !== null) close();
    if (event.key === "/" && !/^(input|select|textarea)$/i.test(event.target.tagName)) { event.preventDefault(); $("query").focus(); }
  });

  // ---- what differs ------------------------------------------------------------------------------------------
  const MOST_CAUSES = 6, MOST_PAIRS = 6;
  const ORDINARY = ["random", "negative", "ties", ""];  // as in parity/report/table.py
  const firstForward = (list) => [...list].sort((a, b) => (a.transform !== "forward") - (b.transform !== "forward") || (a.data !== "random") - (b.data !== "random"));
  const ordinary = (list) => {
    const wrong = list.filter((cell) => RANK[cell.verdict] <= RANK.differs), kinds = [...new Set(wrong.map((cell) => cell.data))];
    if (!wrong.length) return null;
    const same = !kinds.some((kind) => ORDINARY.includes(kind));
    return make("p", { class: "note" }, same ? "The same function at ordinary numbers; not at " + kinds.join(", ") + "." : "Not the same function at ordinary numbers.");
  };
  const said = (cell) => cell.detail.known_reason || (cell.detail.diagnosis || {}).text || cell.detail.reason || NAME[cell.verdict];
  const places = (list) => ["transform", "data", "world", "dtype"].map((field) => [...new Set(list.map((cell) => cell[field]).filter(Boolean))].join(", ")).filter(Boolean).join("; ");
  const fault = (list) => {
    const texts = [...group(list, said)], cause = (list[0].detail.diagnosis || {}), fix = list[0].detail.known_reason ? null : cause.fix;
    const all = places(list), alike = texts.slice(1);
    return make("li", {},
      make("div", {}, list[0].verdict === "differs" ? null : make("b", {}, NAME[list[0].verdict] + ": "), ...linked(texts[0][0])),
      fix ? make("div", { class: "fix" }, ...linked(fix)) : null,
      make("details", {}, make("summary", { class: "where" }, count(list.length, "cell") + (alike.length ? ", and what follows from it" : "")),
        make("p", { class: "where" }, all),
        ...alike.map(([text, those]) => make("p", { class: "note" }, ...linked(text), " ", make("span", { class: "where" }, places(those))))));
  };
  const why = (list) => {
    const differing = list.filter((cell) => RANK[cell.verdict] < RANK["within-bound"] && cell.detail);
    const byRow = [...group(differing, (cell) => cell.pair)];
    $("why-section").hidden = !byRow.length;
    const cards = byRow.map(([pair, held]) => {
      const about = page.pairs[pair] || {};
      // One fault is one line: what has one cause and one fix, derivatives among it, is folded under it.
      const causes = group(firstForward(held), (cell) => {
        const found = cell.detail.diagnosis;
        return [cell.verdict, cell.detail.known_reason || (found ? found.cause + "\n" + found.fix : said(cell))].join("\n");
      });
      const open = () => {
        const entry = [...squares.values()].find(({ held: there }) => there.some((cell) => cell.pair === pair && held.includes(cell)));
        if (entry) { entry.square.scrollIntoView({ block: "center" }); show(entry.row, entry.column); }
      };
      return make("article", { class: "card" },
        make("h3", {}, mark(worst(held)), make("button", { type: "button", onclick: open }, pair)),
        ordinary(held), program(pair), about.note ? make("p", { class: "note" }, ...linked(about.note)) : null,
        make("ul", {}, ...[...causes.values()].slice(0, MOST_CAUSES).map(fault)),
        causes.size > MOST_CAUSES ? make("p", { class: "where" }, "and " + (causes.size - MOST_CAUSES) + " more") : null);
    });
    $("why").replaceChildren(...cards.slice(0, MOST_PAIRS));
    $("why-more").replaceChildren(...(cards.length > MOST_PAIRS ? [make("details", {}, make("summary", {}, count(cards.length - MOST_PAIRS, "more pair")), make("div", { class: "why" }, ...cards.slice(MOST_PAIRS)))] : []));
  };

  // ---- errors in units of the bound --------------------------------------------------------------------------
  const chart = (list, caption) => {
    const bins = page.histogram_log2, total = new Array(bins.length).fill(0);
    for (const cell of list) if (cell.histogram) for (let at = 0; at < cell.histogram.length; at += 2) total[cell.histogram[at]] += cell.histogram[at + 1];
    const sum = total.reduce((a, b) => a + b, 0);
    // A cell without errors in units of the bound (bits, dtypes, structure) is not in the picture: the caption says so.
    const absent = list.filter((cell) => cell.verdict === "differs" && !cell.histogram).length;
    const beyond = (low) => low !== null && low >= 0;  // null >= 0 is true
    if (!sum) return null;
    const wide = 720, high = 170, step = wide / bins.length, most = Math.log10(1 + Math.max(...total));
    const bars = total.map((number, at) => {
      const tall = (high * Math.log10(1 + number)) / most;
      const bar = drawing("rect", { x: at * step + 1, y: high - tall, width: Math.max(1, step - 2), height: tall, rx: 2, fill: beyond(bins[at]) ? "var(--differs)" : "var(--within-ink)", opacity: beyond(bins[at]) ? 1 : 0.7 });
      bar.append(drawing("title", {}, name(bins[at]) + ": " + count(number, "element")));
      return bar;
    });
    const one = bins.findIndex(beyond);
    const line = one < 0 ? [] : [drawing("line", { x1: one * step, x2: one * step, y1: -8, y2: high, stroke: "currentColor", "stroke-dasharray": "4 3" })];
    const ticks = bins.map((low, at) => (low !== null && at > 0 ? drawing("text", { x: at * step, y: high + 16, "text-anchor": "middle", fill: "currentColor" }, low === 0 ? "1" : "2^" + low) : null)).filter(Boolean);
    const zero = drawing("text", { x: 0, y: high + 16, fill: "currentColor" }, "0");
    const above = total.reduce((seen, number, at) => seen + (beyond(bins[at]) ? number : 0), 0);
    const says = caption + ": " + count(sum, "element") + ", " + (above ? above.toLocaleString("en") + " above the bound" : absent ? "none of them above the bound" : "none above the bound")
      + (absent ? "; " + count(absent, "cell") + (absent === 1 ? " differs" : " differ") + " without such errors" : "");
    return make("figure", {}, drawing("svg", { viewBox: "0 -10 " + wide + " " + (high + 32), role: "img", "aria-label": says }, ...bars, ...line, zero, ...ticks), make("figcaption", {}, says + ". Heights are logarithmic."));
  };
  const name = (low) => (low === null ? "less than 2^-12 of the bound" : low >= 0 ? "2^" + low + " times the bound or more" : "2^" + low + " of the bound");

  // ---- the page ----------------------------------------------------------------------------------------------
  const refresh = () => {
    close(false);
    const list = chosen();
    matrix(list);
    why(list);
    const drawn = chart(list, "All cells shown");
    $("histogram-section").hidden = !drawn;
    if (drawn) $("histogram").replaceChildren(...drawn.childNodes);
    const rows = new Set(list.map(rowOf)).size;
    $("shown").textContent = list.length === cells.length ? count(cells.length, "cell") + ", all shown" : count(list.length, "cell") + " of " + cells.length.toLocaleString("en") + " in " + count(rows, many ? "pair" : "transform");
    remember();
  };
  const counts = group(cells, (cell) => cell.verdict);
  const present = VERDICTS.filter(([key]) => counts.has(key));
  $("share").replaceChildren(...[...present].reverse().map(([key]) => make("i", { class: "v-" + key, style: "flex:" + counts.get(key).length })));
  const opened = restore();
  $("verdicts").append(make("div", {}, ...[...present].reverse().map(([key, text]) => make("button", { type: "button", class: "chip", "aria-pressed": String(!state.off.has(key)), onclick: (event) => {
    if (state.off.has(key)) state.off.delete(key); else state.off.add(key);
    event.currentTarget.setAttribute("aria-pressed", String(!state.off.has(key)));
    refresh();
  } }, mark(key), text + " ", make("b", {}, counts.get(key).length.toLocaleString("en"))))));
  $("columns").append(...Object.entries(VIEWS).map(([key, [text]]) => make("option", { value: key, selected: key === state.view }, text)));
  $("columns").addEventListener("change", (event) => { state.view = event.target.value; refresh(); });
  $("query").value = state.query;
  let waiting = 0;
  $("query").addEventListener("input", (event) => {
    clearTimeout(waiting);
    waiting = setTimeout(() => { state.query = event.target.value; refresh(); }, 120);
  });
  $("environment").replaceChildren(...page.environment.flatMap(([term, value]) => [make("dt", {}, term), make("dd", {}, value)]));
  refresh();
  if (opened.length === 2) show(...opened);
})();
