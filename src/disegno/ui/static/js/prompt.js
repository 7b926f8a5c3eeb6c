// The prompt, and how prompts are written.

import { post } from "./api.js";
import { debounced, h } from "./dom.js";
import { weighsWords } from "./emphasis.js";
import { t } from "./i18n.js";
import { more } from "./fields.js";

const SYNTAX = [
  ["(red:1.3)", "counts 1.3 times; (red) is 1.1 times, [red] is 1/1.1 times"],
  ["[cat:dog:0.5]", "first cat, and dog from half of the steps on"],
  ["[cat|dog]", "cat and dog in turn"],
  ["a car AND a street :0.7", "two prompts at once, each with its weight"],
  ["BREAK", "what follows begins a new part of the text"],
  ["<lora:name:0.8>", "a LoRA of your library, this strong"],
  ["__colours__", "a line of your wildcard file colours.txt"],
  ["Ctrl+↑ Ctrl+↓", "what is selected, or the word at the cursor, counts more or less"],
];

function hints() {
  const rows = SYNTAX.map(([code, text]) => [h("dt", {}, h("code", {}, code)), h("dd", {}, t(text))]);
  return more(t("How to write prompts"), false, h("dl", { class: "facts" }, rows));
}

function box(label, { value, rows, placeholder, change }) {
  const input = h("textarea", { rows, placeholder, "aria-label": label, spellcheck: "true", value });
  input.oninput = () => change(input.value);
  weighsWords(input);
  return input;
}

/** Return a line that says how long the prompt is, and `count()`, to be called when it has changed. */
function counter(desk) {
  const line = h("div", { class: "prompt-foot", "aria-live": "off" });
  let turn = 0;
  const count = debounced(async () => {
    turn += 1;
    const mine = turn;
    const found = desk.prompt.trim() ? await post("/v1/tokens", { text: desk.prompt, model: desk.model }).catch(() => null) : null;
    if (mine !== turn) return;
    const { tokens = null, room, chunks, problem } = found ?? {};
    const length = chunks > 1 ? t("{tokens} of {room} tokens, in {chunks} parts", { tokens, room, chunks }) : t("{tokens} of {room} tokens", { tokens, room });
    line.textContent = problem ?? (tokens === null ? "" : length);
    line.classList.toggle("bad", Boolean(problem));
  }, 250);
  count();
  return { line, count };
}

/** Return the card of prompt and negative prompt. */
export function promptCard({ desk, changed }) {
  const prompt = box(t("Prompt"), { value: desk.prompt, rows: 2, placeholder: t("What shall be drawn? A red car on a city street"), change: (value) => {
    desk.prompt = value;
    length.count();
    changed();
  } });
  const negative = box(t("Negative prompt"), { value: desk.negative, rows: 2, placeholder: t("What to keep away from"), change: (value) => {
    desk.negative = value;
    changed();
  } });
  const length = counter(desk);
  const insert = (text) => {
    prompt.value = desk.prompt = prompt.value.trim() ? `${prompt.value.trimEnd()} ${text}` : text;
    length.count();
    changed();
  };
  const element = h("div", { class: "card panel prompt-card" },
    h("div", { class: "prompt-box" }, prompt), length.line,
    more(t("Negative prompt"), Boolean(desk.negative), negative), hints());
  return { element, insert, count: length.count, focus: () => prompt.focus() };
}
