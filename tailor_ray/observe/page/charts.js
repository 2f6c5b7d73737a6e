"use strict";
// Draws the page's pictures as SVG at the width they have, from the JSON beside this script. Text is only ever set as text.

const page = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";

function node(name, attributes, ...children) {
  const made = name[0] === "<" ? document.createElement(name.slice(1)) : document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const number = (value) => value.toLocaleString("en-US", { maximumFractionDigits: value < 10 ? 2 : 0 });
const percent = (value) => `${(100 * value).toFixed(1)} %`;
function duration(seconds) {
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  const whole = Math.round(seconds);
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
  return `${Math.floor(whole / 3600)} h ${String(Math.floor((whole % 3600) / 60)).padStart(2, "0")} min`;
}
const dollars = (value) => `$${value.toLocaleString("en-US", value >= 1 || value === 0 ? { minimumFractionDigits: 2, maximumFractionDigits: 2 } : { maximumSignificantDigits: 2 })}`;
const FORMATS = { number, percent, duration, dollars };
const TICKS = { percent: (value) => `${Math.round(100 * value)} %`, loss: (value) => value.toFixed(1) };

const tip = node("<div", { id: "tip", role: "status" });
document.body.append(tip);
function showTip(event, text) {
  tip.textContent = text;
  tip.classList.add("on");
  const box = tip.getBoundingClientRect();
  const right = document.documentElement.clientWidth - box.width - 8;
  tip.style.left = `${Math.max(8, Math.min(right, event.clientX - box.width / 2)) + scrollX}px`;
  tip.style.top = `${event.clientY + scrollY - box.height - 14}px`;
}
const hideTip = () => tip.classList.remove("on");
function withTip(shape, text) {
  shape.addEventListener("pointermove", (event) => showTip(event, text));
  shape.addEventListener("pointerleave", hideTip);
  return shape;
}

function niceTicks(low, high, wanted) {
  const rough = (high - low || 1) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough);
  const ticks = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-6; at += step) ticks.push(+at.toPrecision(12));
  return ticks;
}

function legend(entries) {
  const item = (entry) => node("<li", {}, node("<i", { class: `swatch ${entry.color}` }), entry.name);
  return node("<ul", { class: "legend" }, ...entries.map(item));
}

// Lines with optional 95 % bars. chart: {series: [{name, color, points: [{x, y, low?, high?, tip}]}], x: {...}, y: {...}}
function drawLines(chart, width) {
  const points = chart.series.flatMap((series) => series.points);
  const height = 250, left = 52, right = 18, top = 16, bottom = 34;
  const xs = points.map((point) => point.x);
  const [x0, x1] = [Math.min(...xs), Math.max(...xs)];
  const lows = points.map((point) => point.low ?? point.y), highs = points.map((point) => point.high ?? point.y);
  const margin = (Math.max(...highs) - Math.min(...lows) || Math.max(...highs) || 1) * 0.08;
  const y0 = chart.y.min ?? Math.min(...lows) - margin;
  const y1 = Math.min(chart.y.max ?? Infinity, Math.max(...highs) + margin);
  const inset = chart.x.whole ? 24 : 0;
  const sx = (x) => left + inset + (x1 === x0 ? 0.5 : (x - x0) / (x1 - x0)) * (width - left - right - 2 * inset);
  const sy = (y) => height - bottom - ((y - y0) / (y1 - y0 || 1)) * (height - top - bottom);
  const svg = node("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": chart.label });
  for (const at of niceTicks(y0, y1, 5)) {
    svg.append(node("line", { class: "gridline", x1: left, x2: width - right, y1: sy(at), y2: sy(at) }));
    svg.append(node("text", { x: left - 8, y: sy(at) + 4, "text-anchor": "end" }, TICKS[chart.y.format](at)));
  }
  const xTicks = chart.x.whole ? [...new Set(xs)] : niceTicks(x0, x1, Math.max(2, Math.floor(width / 110)));
  for (const at of xTicks) {
    svg.append(node("text", { x: sx(at), y: height - bottom + 18, "text-anchor": "middle" }, `${chart.x.prefix || ""}${number(at)}`));
  }
  for (const mark of chart.x.marks || []) {
    svg.append(node("line", { class: "axis", x1: sx(mark.x), x2: sx(mark.x), y1: top, y2: height - bottom, "stroke-dasharray": "2 4" }));
    svg.append(node("text", { x: sx(mark.x) + 5, y: top + 10 }, mark.name));
  }
  // Backwards, so that the first series and its labels lie on top.
  for (const [order, series] of [...chart.series.entries()].reverse()) svg.append(...drawSeries(chart, series, order, sx, sy, height - bottom));
  svg.append(crosshair(chart, width, height, sx, { left, right, top, bottom }));
  return svg;
}

function drawSeries(chart, series, order, sx, sy, floor) {
  const shift = chart.x.whole ? (order - (chart.series.length - 1) / 2) * 7 : 0;
  const drawn = series.points.filter((point) => point.y !== null);
  const path = drawn.map((point, at) => `${at ? "L" : "M"}${(sx(point.x) + shift).toFixed(1)},${sy(point.y).toFixed(1)}`).join("");
  const shapes = [node("path", { class: `stroke ${series.color}`, d: path, "stroke-width": chart.x.whole ? 2.5 : 1.6, "stroke-linejoin": "round" })];
  if (!chart.x.whole) return shapes;
  for (const point of drawn) {
    const x = sx(point.x) + shift;
    if (point.low !== undefined) {
      for (const [ax, bx, ay, by] of [[x, x, point.low, point.high], [x - 4, x + 4, point.low, point.low], [x - 4, x + 4, point.high, point.high]]) {
        shapes.push(node("line", { class: `stroke ${series.color}`, x1: ax, x2: bx, y1: sy(ay), y2: sy(by), "stroke-width": 1.5 }));
      }
    }
    shapes.push(node("circle", { class: `fill ${series.color}`, cx: x, cy: sy(point.y), r: 4.5 }));
    if (order === 0 && chart.series.length <= 2 && drawn.length <= 8) {
      const below = sy(point.low ?? point.y) + 16;
      const y = below < floor - 2 ? below : sy(point.high ?? point.y) - 7;
      shapes.push(node("text", { class: "value halo", x: x - 4 * (chart.series.length - 1), y, "text-anchor": "middle" }, percent(point.y)));
    }
  }
  return shapes;
}

// An invisible sheet over the plot: the nearest x of each series is told in one tip.
function crosshair(chart, width, height, sx, edge) {
  const line = node("line", { class: "axis", y1: edge.top, y2: height - edge.bottom, opacity: 0 });
  const sheet = node("rect", { x: edge.left, y: edge.top, width: Math.max(0, width - edge.left - edge.right), height: height - edge.top - edge.bottom, fill: "transparent" });
  sheet.addEventListener("pointermove", (event) => {
    const at = event.clientX - sheet.ownerSVGElement.getBoundingClientRect().left;
    const nearest = (points) => points.reduce((best, point) => (Math.abs(sx(point.x) - at) < Math.abs(sx(best.x) - at) ? point : best));
    const picked = chart.series.filter((series) => series.points.length).map((series) => [series.name, nearest(series.points)]);
    const x = picked[0][1].x;
    line.setAttribute("x1", sx(x)); line.setAttribute("x2", sx(x)); line.setAttribute("opacity", 0.6);
    showTip(event, [`${chart.x.name} ${number(x)}`, ...picked.map(([name, point]) => `${name}: ${point.tip}`)].join("\n"));
  });
  sheet.addEventListener("pointerleave", () => { line.setAttribute("opacity", 0); hideTip(); });
  return node("g", {}, line, sheet);
}

// Horizontal stacked bars. chart: {rows: [{name, parts: [{name, color, value}], total?}], format, share}
function drawBars(chart, width) {
  const names = chart.rows.map((row) => row.name);
  const left = Math.min(170, Math.max(...names.map((name) => name.length)) * 7.2 + 14), right = chart.share ? 12 : 84;
  const gap = 14, bar = Math.max(22, Math.min(40, 190 / chart.rows.length - gap)), height = chart.rows.length * (bar + gap) + 4;
  const totals = chart.rows.map((row) => row.parts.reduce((sum, part) => sum + part.value, 0));
  const most = Math.max(...totals) || 1;
  const svg = node("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": chart.label });
  const format = FORMATS[chart.format];
  chart.rows.forEach((row, order) => {
    const y = order * (bar + gap) + 4, room = Math.max(10, width - left - right);
    svg.append(node("text", { x: left - 10, y: y + bar / 2 + 4, "text-anchor": "end" }, row.name));
    const scale = room / (chart.share ? totals[order] || 1 : most);
    let x = left;
    for (const part of row.parts.filter((part) => part.value > 0)) {
      const wide = part.value * scale;
      const share = totals[order] ? ` (${percent(part.value / totals[order])})` : "";
      svg.append(withTip(node("rect", { class: `fill ${part.color}`, x, y, width: Math.max(1, wide - 1), height: bar, rx: 3 }), `${row.name}\n${part.name}: ${format(part.value)}${share}`));
      x += wide;
    }
    if (!chart.share) svg.append(node("text", { class: "value", x: x + 8, y: y + bar / 2 + 4 }, format(totals[order])));
  });
  return svg;
}

function mount(host, chart) {
  const entries = chart.kind === "lines" ? chart.series : uniqueParts(chart.rows);
  if (chart.legend !== false) host.before(legend(entries));
  const draw = () => {
    const width = Math.floor(host.clientWidth);
    if (width > 0) host.replaceChildren((chart.kind === "lines" ? drawLines : drawBars)(chart, width));
  };
  new ResizeObserver(draw).observe(host);
}

function uniqueParts(rows) {
  const seen = new Map();
  for (const part of rows.flatMap((row) => row.parts)) seen.set(part.name, { ...part, value: part.value + (seen.get(part.name)?.value || 0) });
  return [...seen.values()].filter((part) => part.value > 0);
}

for (const host of document.querySelectorAll("[data-chart]")) mount(host, page.charts[host.dataset.chart]);
