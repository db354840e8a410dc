"use strict";
// Shows what /page/overview and /page/stream tell, and asks again twice a second. Every text from outside is put into
// the page as text (textContent), never as markup.

(() => {
  const LOOK_MS = 500;
  const LIGHT = ["#0b5cad", "#a8201a", "#17703a", "#8a5a00", "#6b3fa0", "#0f766e", "#b0306a", "#4a5568"];
  const DARK = ["#7db8f7", "#ff8f86", "#6fd08f", "#f0c05a", "#c3a2f5", "#5eead4", "#f59ac4", "#aab6c6"];
  const MAX_IN_A_PLOT = 24;

  const $ = (id) => document.getElementById(id);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const rows = new Map();  // stream id → its entry in the list
  const plots = new Map();  // unit → its plot
  const hidden = new Set();  // channels that the reader has turned off
  let overview = null;
  let shown = null;  // the stream shown
  let view = null;  // the time range shown, null for all of it
  let answered = 0;  // when the last answer came
  let asking = false;

  // ---- texts ----------------------------------------------------------------------------------------------------

  const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;
  const clean = (text) => String(text ?? "").replace(UNSEEN, "\ufffd");
  const count = (n, noun) => `${n.toLocaleString("en").replaceAll(",", "\u202f")} ${noun}${n === 1 ? "" : "s"}`;

  function ago(seconds) {
    const s = Math.max(0, Math.round(seconds));
    if (s < 60) return `${s} s`;
    if (s < 3600) return `${Math.floor(s / 60)} min`;
    return s < 172800 ? `${Math.floor(s / 3600)} h` : `${Math.floor(s / 86400)} d`;
  }

  function write(element, text) {
    const said = clean(text);
    if (element.textContent !== said) element.textContent = said;
  }

  function make(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = clean(text);
    return element;
  }

  function number(value, digits = 6) {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(Math.min(3, digits - 1)).replace(/\.?0+e/, "e");
    return Number(value.toPrecision(digits)).toString();
  }

  const two = (n) => String(n).padStart(2, "0");

  function moments(seconds, step) {  // the texts below a time axis; the day only where it changes
    let day = "";
    return seconds.map((s) => {
      const at = new Date(s * 1000);
      const today = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
      let text = `${two(at.getHours())}:${two(at.getMinutes())}`;
      if (step < 60) text += ":" + two(at.getSeconds());
      if (step < 1) text += "." + String(at.getMilliseconds()).padStart(3, "0");
      if (today !== day) text += "\n" + today;
      day = today;
      return text;
    });
  }

  // ---- the list -------------------------------------------------------------------------------------------------

  function newRow(id) {
    const row = { item: make("li"), link: make("a"), what: make("span", "what"), status: make("span", "pill"),
                  more: make("span", "more"), name: make("span"), spark: "" };
    row.link.href = "#" + encodeURIComponent(id);
    row.what.append(row.name, " ", row.status);
    row.svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    row.svg.setAttribute("viewBox", "0 0 100 30");
    row.svg.setAttribute("preserveAspectRatio", "none");
    row.svg.setAttribute("aria-hidden", "true");
    row.link.append(row.what, row.svg, row.more);
    row.item.append(row.link);
    return row;
  }

  function drawSpark(svg, values) {
    const numbers = values.filter((v) => v !== null);
    const low = Math.min(...numbers), high = Math.max(...numbers);
    const lines = [[]];
    values.forEach((value, i) => {
      if (value === null) {
        if (lines.at(-1).length) lines.push([]);
        return;
      }
      const x = values.length > 1 ? (100 * i) / (values.length - 1) : 50;
      const y = high > low ? 28 - (26 * (value - low)) / (high - low) : 15;
      lines.at(-1).push(`${x.toFixed(1)},${y.toFixed(1)}`);
    });
    svg.replaceChildren(...lines.filter((points) => points.length).map((points) => {
      const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
      line.setAttribute("points", points.join(" "));
      return line;
    }));
  }

  function showOverview() {
    document.title = clean(overview.title);
    write($("home"), overview.title);
    write($("place"), overview.place);
    const sought = $("find").value.trim().toLowerCase();
    const fits = overview.streams.filter((s) =>
      !sought || `${s.name} ${s.sample ?? ""} ${s.status} ${s.instrument ?? ""}`.toLowerCase().includes(sought));
    const list = $("streams");
    const wanted = new Set(fits.map((s) => s.id));
    for (const [id, row] of rows) {
      if (!wanted.has(id)) { row.item.remove(); rows.delete(id); }
    }
    fits.forEach((stream, i) => {
      let row = rows.get(stream.id);
      if (!row) rows.set(stream.id, (row = newRow(stream.id)));
      if (list.children[i] !== row.item) list.insertBefore(row.item, list.children[i] ?? null);
      write(row.name, stream.name);
      write(row.status, stream.status);
      row.status.className = "pill " + (["live", "done", "wait", "bad"].includes(stream.tone) ? stream.tone : "done");
      const more = [count(stream.points, "point"), count(stream.channels, "channel")];
      if (stream.sample) more.push(`sample ${stream.sample}`);
      if (stream.instrument) more.push(stream.instrument);
      if (stream.note) more.push(stream.note);
      more.push(`${ago(overview.now - stream.updated)} ago`);
      write(row.more, more.join(" · "));
      const spark = JSON.stringify(stream.spark);
      if (row.spark !== spark) { row.spark = spark; drawSpark(row.svg, stream.spark); }
    });
    const none = fits.length ? (overview.more ? `${overview.more} older ones are not shown.` : "")
      : overview.streams.length ? "No stream fits." : "There is no stream yet. This page shows the first one as it begins.";
    $("none").hidden = !none;
    write($("none"), none);
    $("outage").hidden = !overview.outage;
    if (overview.outage) {
      write($("outage"), `Nothing is delivered for ${ago(overview.now - overview.outage.since)}: ${overview.outage.error}. `
        + "The readings are kept and shown here.");
    }
    $("requests").hidden = !overview.requests;
    if (overview.requests) {
      const by = Object.entries(overview.requests.by_status).map(([status, n]) => `${n} × ${status}`).join(", ");
      write($("requests"), `${count(overview.requests.total, "request")}${by ? ": " + by : ""}`
        + (overview.requests.under_way ? `; ${overview.requests.under_way} under way` : ""));
    }
  }

  // ---- one stream -----------------------------------------------------------------------------------------------

  const chosen = () => decodeURIComponent(location.hash.slice(1));

  function showStream() {
    const line = overview?.streams.find((s) => s.id === shown.id);
    write($("name"), shown.name);
    const facts = [...shown.facts];
    if (line) facts.unshift(["status", line.status]);
    if (shown.thinned) facts.push(["shown", "the lowest and highest points of each moment; zoom in for more"]);
    $("facts").replaceChildren(...facts.flatMap(([name, text]) => [make("dt", "", name), make("dd", "", text)]));
    const relatives = (overview?.streams ?? []).filter((s) => line?.run && s.run === line.run && s.id !== shown.id);
    $("relatives").replaceChildren(...(relatives.length ? [make("span", "quiet", "Same run: ")] : []),
      ...relatives.slice(0, 12).map((s) => {
        const link = make("a", "", s.name);
        link.href = "#" + encodeURIComponent(s.id);
        return link;
      }));
    const units = new Map();
    for (const channel of shown.channels) {
      const unit = channel.unit ?? "";
      if (!units.has(unit)) units.set(unit, []);
      if (units.get(unit).length < MAX_IN_A_PLOT) units.get(unit).push(channel);
    }
    for (const [unit, plot] of plots) {
      if (!units.has(unit)) { plot.remove(); plots.delete(unit); }
    }
    for (const [unit, channels] of units) {
      const key = JSON.stringify(channels.map((c) => c.name));
      if (plots.get(unit)?.key !== key) {
        plots.get(unit)?.remove();
        plots.set(unit, new Plot(unit, channels, key));
      }
      plots.get(unit).update(channels);
    }
  }

  class Plot {
    constructor(unit, channels, key) {
      this.key = key;
      this.figure = make("figure");
      this.figure.append(make("figcaption", "", unit || "no unit"));
      this.legend = make("div", "channels");
      this.box = make("div");
      this.figure.append(this.legend, this.box);
      $("plots").append(this.figure);
      const colours = dark.matches ? DARK : LIGHT;
      const ink = getComputedStyle(document.documentElement).getPropertyValue("--quiet");
      const grid = { stroke: getComputedStyle(document.documentElement).getPropertyValue("--line"), width: 1 };
      this.buttons = channels.map((channel, i) => {
        const button = make("button");
        button.type = "button";
        const colour = make("i");
        colour.style.backgroundColor = colours[i % colours.length];
        const value = make("b", "", "–");
        button.append(colour, make("span", "", channel.name), value);
        button.addEventListener("click", () => {
          const name = channel.name;
          hidden.has(name) ? hidden.delete(name) : hidden.add(name);
          this.toggle();
        });
        this.legend.append(button);
        return { button, value, name: channel.name };
      });
      const series = channels.map((channel, i) => ({
        label: "", stroke: colours[i % colours.length], width: 1.5, show: !hidden.has(channel.name), spanGaps: false,
        points: { size: 5 },
      }));
      this.uplot = new uPlot({
        width: this.width(), height: 240,
        legend: { show: false },
        cursor: { drag: { x: true, y: false, setScale: false }, sync: { key: "time" }, focus: { prox: 24 } },
        scales: { x: { time: true, range: (_, low, high) => (view ? [view.begin, view.end]
          : low === high ? [low - 1, high + 1] : [low, high]) } },
        axes: [
          { stroke: ink, grid, ticks: grid, space: 90, values: (_u, splits, _i, _space, step) => moments(splits, step) },
          { stroke: ink, grid, ticks: grid, size: 72, values: (_u, splits) => splits.map((v) => number(v, 5)) },
        ],
        series: [{}, ...series],
        hooks: {
          setSelect: [(u) => {
            if (u.select.width < 4) return;
            const begin = u.posToVal(u.select.left, "x"), end = u.posToVal(u.select.left + u.select.width, "x");
            u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
            look(begin, end);
          }],
          setCursor: [(u) => this.tell(u.cursor.idx)],
          drawClear: [(u) => this.shade(u)],
          draw: [(u) => this.mark(u)],
        },
      }, [[], ...channels.map(() => [])], this.box);
      this.uplot.over.addEventListener("dblclick", () => look(null));
      this.toggle();
    }

    width() { return Math.max(240, $("plots").clientWidth); }

    update(channels) {
      this.channels = channels;
      this.gaps = gapsOf(channels);
      const data = channels.length ? uPlot.join(channels.map((c) => [c.times, c.values])) : [[]];
      this.uplot.setData(data);
      this.tell(this.uplot.cursor.idx);
    }

    toggle() {
      this.buttons.forEach(({ button, name }, i) => {
        button.setAttribute("aria-pressed", String(!hidden.has(name)));
        this.uplot.setSeries(i + 1, { show: !hidden.has(name) });
      });
    }

    tell(index) {
      this.buttons.forEach(({ value }, i) => {
        const channel = this.channels?.[i];
        const at = index === null || index === undefined ? channel?.values.at(-1) : this.uplot.data[i + 1]?.[index];
        write(value, number(at ?? null));
      });
    }

    shade(u) {
      const { ctx } = u;
      ctx.save();
      ctx.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--gap");
      for (const [begin, end] of this.gaps ?? []) {
        const left = Math.max(u.bbox.left, u.valToPos(begin, "x", true));
        const right = Math.min(u.bbox.left + u.bbox.width, u.valToPos(end, "x", true));
        if (right > left) ctx.fillRect(left, u.bbox.top, right - left, u.bbox.height);
      }
      ctx.restore();
    }

    mark(u) {
      const { ctx } = u;
      const ratio = window.devicePixelRatio || 1;
      ctx.save();
      ctx.strokeStyle = ctx.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--wait");
      ctx.font = `${12 * ratio}px system-ui, sans-serif`;
      ctx.setLineDash([6 * ratio, 4 * ratio]);
      (shown?.marks ?? []).forEach((mark, i) => {
        const x = u.valToPos(mark.time, "x", true);
        if (x < u.bbox.left || x > u.bbox.left + u.bbox.width) return;
        ctx.beginPath();
        ctx.moveTo(x, u.bbox.top);
        ctx.lineTo(x, u.bbox.top + u.bbox.height);
        ctx.stroke();
        const right = x > u.bbox.left + u.bbox.width / 2;
        ctx.textAlign = right ? "right" : "left";
        ctx.fillText(clean(mark.text), x + (right ? -4 : 4) * ratio, u.bbox.top + (14 + 14 * (i % 4)) * ratio);
      });
      ctx.restore();
    }

    remove() { this.uplot.destroy(); this.figure.remove(); }
  }

  function gapsOf(channels) {
    const gaps = [];
    const times = channels.reduce((most, c) => (c.times.length > most.length ? c.times : most), []);
    const steps = times.slice(1).map((t, i) => t - times[i]).filter((s) => s > 0).sort((a, b) => a - b);
    const usual = steps[Math.floor(steps.length / 2)];
    for (let i = 1; i < times.length && gaps.length < 200; i++) {
      if (times[i] - times[i - 1] > 5 * usual && times[i] - times[i - 1] > 1) gaps.push([times[i - 1], times[i]]);
    }
    for (const channel of channels) {  // where a channel has no value
      let begin = null;
      channel.values.forEach((value, i) => {
        if (value === null && begin === null) begin = channel.times[Math.max(0, i - 1)];
        if (begin !== null && (value !== null || i === channel.values.length - 1) && gaps.length < 400) {
          gaps.push([begin, channel.times[i]]);
          begin = null;
        }
      });
    }
    return gaps;
  }

  // ---- the time range -------------------------------------------------------------------------------------------

  function look(begin, end) {
    view = begin === null || !(end > begin) ? null : { begin, end };
    if (shown) shown.version = "";
    for (const plot of plots.values()) plot.uplot.setData(plot.uplot.data);
    ask();
  }

  function ends() {
    if (view) return view;
    const times = (shown?.channels ?? []).flatMap((c) => [c.times[0], c.times.at(-1)]).filter((t) => t !== undefined);
    return times.length ? { begin: Math.min(...times), end: Math.max(...times) } : { begin: 0, end: 1 };
  }

  function act(what) {
    const { begin, end } = ends();
    const width = end - begin;
    if (what === "all") look(null);
    if (what === "last") { view = null; look(end - 60, end); }
    if (what === "in") look(begin + width / 4, end - width / 4);
    if (what === "out") look(begin - width / 2, end + width / 2);
    if (what === "earlier") look(begin - width / 4, end - width / 4);
    if (what === "later") look(begin + width / 4, end + width / 4);
  }

  $("tools").addEventListener("click", (event) => act(event.target.dataset?.do));
  $("plots").addEventListener("keydown", (event) => {
    const keys = { "+": "in", "=": "in", "-": "out", ArrowLeft: "earlier", ArrowRight: "later", 0: "all" };
    if (keys[event.key] && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      act(keys[event.key]);
    }
  });

  // ---- asking ---------------------------------------------------------------------------------------------------

  async function get(path) {
    const answer = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(10000) });
    if (answer.status === 404) return null;
    if (!answer.ok) throw new Error(`${answer.status}: ${(await answer.text()).slice(0, 200)}`);
    return answer.json();
  }

  async function ask() {
    if (asking) return;
    asking = true;
    try {
      overview = await get("/page/overview");
      showOverview();
      const id = chosen();
      $("overview").hidden = Boolean(id);
      $("stream").hidden = !id;
      if (id) {
        const range = view ? `&begin=${view.begin}&end=${view.end}` : "";
        const asked = view;
        const version = shown?.id === id ? shown.version : "";
        const path = `/page/stream?id=${encodeURIComponent(id)}&version=${encodeURIComponent(version)}${range}`;
        const found = await get(path);
        if (found && id === chosen() && asked === view) {
          const same = shown?.id === found.id && found.version === version;
          shown = same ? { ...found, channels: shown.channels, marks: shown.marks, thinned: shown.thinned } : found;
          showStream();
        }
        if (!found) write($("name"), "There is no such stream.");
      }
      answered = Date.now();
    } catch (error) {
      tellLink(error);
      return;
    } finally {
      asking = false;
    }
    tellLink(null);
  }

  function tellLink(error) {
    const pill = $("link");
    pill.className = "pill " + (error ? "bad" : "live");
    write(pill, !error ? "live" : answered ? `no answer for ${ago((Date.now() - answered) / 1000)}` : `no answer: ${error.message}`);
  }

  function choose() {
    shown = null;
    view = null;
    for (const plot of plots.values()) plot.remove();
    plots.clear();
    write($("name"), "");
    $("facts").replaceChildren();
    $("relatives").replaceChildren();
    ask().then(() => { if (chosen()) $("name").focus({ preventScroll: true }); });
  }

  window.addEventListener("hashchange", choose);
  $("find").addEventListener("input", () => overview && showOverview());
  window.addEventListener("resize", () => {
    for (const plot of plots.values()) plot.uplot.setSize({ width: plot.width(), height: 240 });
  });
  dark.addEventListener("change", choose);
  document.addEventListener("visibilitychange", () => { if (!document.hidden) ask(); });
  setInterval(() => { if (!document.hidden) ask(); }, LOOK_MS);
  ask();
})();
