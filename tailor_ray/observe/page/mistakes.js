"use strict";
// The table of mistakes: search, two filters and pages over page.mistakes.rows. Model text is only ever set as text.

(() => {
  const body = document.getElementById("mistake-rows");
  if (!body) return;
  const PAGE = 10;
  const COLORS = { fixed: "c3", stubborn: "c6", regressed: "c4", kept: "c1", undecided: "c5", open: "c2" };
  const WORDS = {
    fixed: "fixed", stubborn: "stubborn", regressed: "regressed", kept: "mostly right", undecided: "undecided", open: "not asked again yet",
  };
  const VERDICTS = { correct: "c3", wrong: "c4" };
  const input = document.getElementById("mistake-search");
  const round = document.getElementById("mistake-round");
  const change = document.getElementById("mistake-change");
  const count = document.getElementById("mistake-count");
  const [back, next] = ["mistake-back", "mistake-next"].map((id) => document.getElementById(id));
  const rows = page.mistakes.rows;
  const texts = rows.map((row) => [row.id, row.question, row.gold, row.attempt, row.feedback, row.lesson, row.later].join("\n").toLowerCase());
  let at = 0;

  const unique = (name) => [...new Set(rows.map((row) => row[name]))].sort();
  for (const value of unique("round")) round.append(node("<option", { value }, `round ${value}`));
  for (const value of unique("change")) change.append(node("<option", { value }, WORDS[value]));

  function marked(text, words) {
    const pieces = [];
    const lower = text.toLowerCase();
    let from = 0;
    while (words && lower.length === text.length) {
      const found = lower.indexOf(words, from);
      if (found < 0) break;
      pieces.push(text.slice(from, found), node("<mark", {}, text.slice(found, found + words.length)));
      from = found + words.length;
    }
    return [...pieces, text.slice(from)];
  }

  function cell(label, words, text, ...more) {
    const content = text ? node("<div", { class: "text", tabindex: 0 }, ...marked(text, words)) : node("<div", { class: "text sub" }, "—");
    return node("<td", {}, node("<span", { class: "label" }, label), ...more.filter(Boolean), content);
  }

  const badge = (color, text) => node("<span", { class: `badge ${color}` }, text);

  function line(row, words) {
    const sub = (text) => node("<div", { class: "sub" }, text);
    const teacher = [row.feedback, row.lesson && (row.feedback ? `Corrected: ${row.lesson}` : row.lesson)].filter(Boolean).join("\n\n");
    const about = node("<div", {}, badge(COLORS[row.change], WORDS[row.change]));
    const question = cell("Question", words, row.question, about, sub(`round ${row.round} · ${row.id}`));
    question.append(sub(`Gold answer: ${row.gold}`));
    return node(
      "<tr", {}, question,
      cell("Student’s attempt", words, row.attempt, sub(`answered ${row.answer || "nothing"} · ${row.wrong} of ${row.attempts} wrong`)),
      cell("Teacher", words, teacher, sub(row.feedback ? "feedback" : row.lesson ? "rationale" : "no accepted lesson")),
      cell("Student’s later attempt", words, row.later, row.later_verdict && badge(VERDICTS[row.later_verdict] || "c6", row.later_verdict)),
    );
  }

  function show() {
    const words = input.value.trim().toLowerCase();
    const kept = rows.filter((row, index) =>
      (!round.value || String(row.round) === round.value) && (!change.value || row.change === change.value) && (!words || texts[index].includes(words)));
    const pages = Math.max(1, Math.ceil(kept.length / PAGE));
    at = Math.max(0, Math.min(at, pages - 1));
    body.replaceChildren(...kept.slice(at * PAGE, (at + 1) * PAGE).map((row) => line(row, words)));
    if (!kept.length) body.append(node("<tr", {}, node("<td", { colspan: 4, class: "muted" }, "Nothing matches.")));
    count.textContent = `${number(kept.length)} shown · page ${at + 1} of ${pages}`;
    back.disabled = at === 0;
    next.disabled = at >= pages - 1;
  }

  const turn = (by) => () => { at += by; show(); document.getElementById("mistakes").scrollIntoView(); };
  const restart = () => { at = 0; show(); };
  input.addEventListener("input", restart);
  round.addEventListener("change", restart);
  change.addEventListener("change", restart);
  back.addEventListener("click", turn(-1));
  next.addEventListener("click", turn(1));
  show();
})();
