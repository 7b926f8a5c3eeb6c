// Labelled inputs. Each returns an element; `set` shows another value without telling anybody.

import { button, fill, h, uniqueId } from "./dom.js";
import { t } from "./i18n.js";

/** Return a slider with a number beside it. `change(value)` is told while it moves. */
export function slider(label, { value, min, max, step, help = "", change }) {
  const id = uniqueId("slider");
  const clamp = (x) => Math.min(max, Math.max(min, x));
  const range = h("input", { type: "range", id, min, max, step, title: help || null });
  const number = h("input", { type: "number", class: "value", min, max, step, "aria-label": label });
  const show = (x) => {
    range.value = x;
    range.style.setProperty("--at", `${((clamp(x) - min) / (max - min || 1)) * 100}%`);
  };
  const element = h("div", { class: "field", title: help || null },
    h("div", { class: "row spread" }, h("label", { for: id, class: "muted small-text" }, label), number), range);
  element.set = (x) => {
    number.value = x;
    show(x);
  };
  range.oninput = () => {
    element.set(Number(range.value));
    change(Number(range.value));
  };
  number.onchange = () => {
    const given = number.valueAsNumber;
    const x = Number.isFinite(given) ? clamp(Number.isInteger(step) ? Math.round(given) : given) : Number(range.value);
    element.set(x);
    change(x);
  };
  element.set(value);
  return element;
}

/** Return an input for a number; what is empty is null. `read(text, by)`: where it is read in another way, the number, `by` further on, or null. */
export function numberField(label, { value, min, max = null, step = 1, placeholder = "", change, read = null }) {
  const id = uniqueId("number");
  const input = h("input", { type: "number", id, min, max, step, placeholder, value: value ?? "" });
  const rounded = () => (Number.isFinite(input.valueAsNumber) ? Math.min(max, Math.max(min, Math.round(input.valueAsNumber / step) * step)) : null);
  input.onchange = () => {
    const x = read ? read(input.value) : rounded();
    input.value = x ?? "";
    change(x);
  };
  if (read) {
    input.onkeydown = (event) => {
      const by = { ArrowUp: 1, ArrowDown: -1 }[event.key];
      const x = by ? read(input.value, by) : null;
      if (x === null) return;
      event.preventDefault(); // the browser's own step is exact below 2^53 only
      input.value = x;
      change(x);
    };
  }
  const element = h("div", { class: "field" }, h("label", { for: id }, label), input);
  element.set = (x) => {
    input.value = x ?? "";
  };
  element.placeholder = (text) => {
    input.placeholder = text;
  };
  return element;
}

/** Return a choice. `options`: [value, text, disabled's reason] each. */
export function choice(label, { value, options, change, bare = false }) {
  const id = uniqueId("choice");
  const select = h("select", { id, "aria-label": bare ? label : null });
  select.onchange = () => change(select.value);
  const element = bare ? select : h("div", { class: "field" }, h("label", { for: id }, label), select);
  element.offer = (some, chosen) => {
    const there = some.some(([each]) => each === chosen) ? some : [...some, [chosen, chosen, ""]];
    fill(select, there.map(([each, text, why]) => h("option", { value: each, disabled: Boolean(why), title: why || null }, why ? `${text} — ${why}` : text)));
    select.value = chosen;
  };
  element.set = (x) => {
    select.value = x;
  };
  element.offer(options, value);
  return element;
}

/** Return a few values side by side, of which one is chosen. `options`: [value, text] each. */
export function segmented(label, { value, options, change }) {
  const element = h("div", { class: "segmented", role: "radiogroup", "aria-label": label });
  element.set = (chosen) => {
    for (const each of element.children) {
      const is = each.dataset.value === chosen;
      each.setAttribute("aria-checked", String(is));
      each.tabIndex = is ? 0 : -1;
    }
  };
  const choose = (chosen, focus) => {
    element.set(chosen);
    if (focus) element.querySelector(`[data-value="${CSS.escape(chosen)}"]`).focus();
    change(chosen);
  };
  for (const [each, text] of options) {
    element.append(button(text, { role: "radio", data: { value: each }, onclick: () => choose(each) }));
  }
  element.onkeydown = (event) => {
    const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    const values = options.map(([each]) => each);
    const at = values.indexOf(element.querySelector('[aria-checked="true"]')?.dataset.value);
    choose(values[(at + by + values.length) % values.length], true);
  };
  element.set(value);
  return element;
}

/** Return a switch. */
export function toggle(label, { value, change, hide = false }) {
  const input = h("input", { type: "checkbox", role: "switch", checked: value });
  input.onchange = () => change(input.checked);
  const element = h("label", { class: "switch" }, input, h("span", { class: "track" }), h("span", { class: hide ? "visually-hidden" : null }, label));
  element.set = (x) => {
    input.checked = x;
  };
  return element;
}

/** Return a line that says how large a picture becomes; `show()`: it is another size now. */
export function becomes(size) {
  const element = h("p", { class: "help" });
  element.show = () => { element.textContent = t("It becomes {width} × {height}.", size()); };
  element.show();
  return element;
}

/** Return something that opens and closes. */
export function more(label, open, ...children) {
  return h("details", { class: "more", open: open || null }, h("summary", {}, label), h("div", {}, children));
}

/** Return a button with a menu below it. `items()`: [text, icon, work] each, asked for when it opens. */
export function menu(text, iconName, items, properties = {}) {
  const list = h("div", { role: "menu", hidden: true });
  const opener = button(text, { "aria-haspopup": "menu", "aria-expanded": "false", ...properties }, iconName);
  const element = h("div", { class: "menu" }, opener, list);
  const close = () => {
    list.hidden = true;
    opener.setAttribute("aria-expanded", "false");
    document.removeEventListener("pointerdown", outside, true);
  };
  const outside = (event) => !element.contains(event.target) && close();
  element.addEventListener("focusout", ({ relatedTarget }) => relatedTarget && !element.contains(relatedTarget) && close());
  opener.onclick = () => {
    if (!list.hidden) return close();
    fill(list, items().map(([name, picture, work]) => button(name, { role: "menuitem", onclick: () => { close(); work(); } }, picture)));
    list.hidden = false;
    list.className = "";
    const { left, bottom, height } = list.getBoundingClientRect();
    list.classList.toggle("above", bottom > innerHeight && opener.getBoundingClientRect().top > height);
    list.classList.toggle("rightward", left < 0);
    opener.setAttribute("aria-expanded", "true");
    document.addEventListener("pointerdown", outside, true);
    list.firstElementChild?.focus({ preventScroll: true });
    return undefined;
  };
  element.onkeydown = (event) => {
    if (event.key === "Escape" && !list.hidden) {
      event.stopPropagation();
      event.preventDefault(); // a dialog around it stays open
      close();
      opener.focus();
    }
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (by && !list.hidden) {
      event.preventDefault();
      const some = [...list.children];
      some[(some.indexOf(document.activeElement) + by + some.length) % some.length].focus();
    }
  };
  return element;
}

/** Open a dialog over the page; it is removed when it closes. Returns it. */
export function openDialog(title, body, { className = "", closed = () => {} } = {}) {
  const dialog = h("dialog", { class: className, "aria-label": title });
  dialog.append(body);
  document.body.append(dialog);
  dialog.addEventListener("close", () => {
    const toasts = dialog.querySelector(".toasts");
    if (toasts) document.body.append(toasts);
    dialog.remove();
    closed();
  });
  dialog.addEventListener("pointerdown", (event) => event.target === dialog && dialog.close());
  dialog.showModal();
  return dialog;
}

/** Ask before what cannot be taken back; return whether it is wanted. `yes`: what is done then. */
export function sure(question, yes) {
  return new Promise((resolve) => {
    let wanted = false;
    const answer = (value) => () => {
      wanted = value;
      dialog.close();
    };
    const buttons = h("div", { class: "row" }, button(t("Cancel"), { class: "grow", onclick: answer(false) }), button(yes, { class: "primary grow", onclick: answer(true) }, "trash"));
    const dialog = openDialog(question, h("div", { class: "dialog-body stack" }, h("p", {}, question), buttons), { className: "question", closed: () => resolve(wanted) });
  });
}
