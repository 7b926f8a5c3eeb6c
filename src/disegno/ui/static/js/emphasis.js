// Ctrl+Up and Ctrl+Down, as in A1111: what is selected, or the word at the cursor, counts more or less.

const STEP = 0.1;
const NUMBER = /^:\s*(\d+(?:\.\d*)?|\.\d+)\s*([)>])/;
const BARE = /^\w+:[^:]+$/; // a file that is named without a weight
const BREAKS = /[\s,.;:!?|()[\]<>{}\\，。、；：！？（）]/;

/** Return where the innermost bracket of this kind around a place begins and ends, or null. */
function around(text, at, [opening, closing]) {
  const start = text.lastIndexOf(opening, at - 1);
  if (start < 0 || text.slice(start, at).includes(closing)) return null;
  const end = text.indexOf(closing, at);
  return end < 0 || text.slice(at, end).includes(opening) ? null : [start + 1, end];
}

/** Return the part that is meant, [start, end]: the selection, what a weight already counts for, or a word. */
function meant(text, start, end) {
  if (start === end) {
    const file = around(text, start, "<>");
    if (file && BARE.test(text.slice(...file))) return file;
    const inside = around(text, start, "()") ?? file;
    const colon = inside && text.lastIndexOf(":", inside[1]);
    if (inside && colon > inside[0] && NUMBER.test(text.slice(colon))) return [inside[0], colon];
    while (start > 0 && !BREAKS.test(text[start - 1])) start -= 1;
    while (end < text.length && !BREAKS.test(text[end])) end += 1;
  }
  while (end > start && /\s/.test(text[end - 1])) end -= 1;
  while (start < end && /\s/.test(text[start])) start += 1;
  return [start, end];
}

/**
 * Return how a prompt is changed: { from, to, text, select } (the new text of a part, and what is selected in it), or
 * null where nothing is meant. `by`: 1 or -1.
 */
export function weighed(prompt, selectionStart, selectionEnd, by) {
  const [start, end] = meant(prompt, selectionStart, selectionEnd);
  if (start === end) return null;
  const words = prompt.slice(start, end);
  const found = "(<".includes(prompt[start - 1] ?? " ") ? NUMBER.exec(prompt.slice(end)) : null;
  const old = found ? Number(found[1]) : 1;
  const weight = Math.max(0, Math.round((old + by * STEP) * 100) / 100);
  const bare = prompt[start - 1] === "<" && prompt[end] === ">";
  const [from, to] = found ? [start - 1, end + found[0].length] : bare ? [start - 1, end + 1] : [start, end];
  const file = bare || found?.[2] === ">"; // of a LoRA, which is named even where it counts once
  const text = file ? `<${words}:${weight}>` : weight === 1 ? words : `(${words}:${weight})`;
  const first = from + (text === words ? 0 : 1);
  return { from, to, text, select: [first, first + words.length] };
}

/** Let Ctrl+Up and Ctrl+Down weigh the words of a text; Ctrl+Z takes it back, as what is typed. */
export function weighsWords(input) {
  input.addEventListener("keydown", (event) => {
    const by = { ArrowUp: 1, ArrowDown: -1 }[event.key];
    if (!by || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    const change = weighed(input.value, input.selectionStart, input.selectionEnd, by);
    if (!change) return;
    input.setSelectionRange(change.from, change.to);
    if (!document.execCommand("insertText", false, change.text)) {
      input.setRangeText(change.text);
      input.dispatchEvent(new Event("input", { bubbles: true }));
    }
    input.setSelectionRange(...change.select);
  });
}
