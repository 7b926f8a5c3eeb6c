// The page's languages. The English text is the key; `zh.js` has the Chinese one.

import { ZH } from "./zh.js";

const NAMES = { en: "English", zh: "中文" };
const TABLES = { en: {}, zh: ZH };

function chosen() {
  const kept = localStorage.getItem("disegno.language");
  if (kept in NAMES) return kept;
  return (navigator.language ?? "en").toLowerCase().startsWith("zh") ? "zh" : "en";
}

export const language = chosen();
document.documentElement.lang = language === "zh" ? "zh-CN" : "en";

/** Return the text in the page's language; `{name}` is replaced by `values.name`. */
export function t(text, values = {}) {
  const said = TABLES[language][text] ?? text;
  return said.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}

/** Return [code, name] of every language. */
export const languages = Object.entries(NAMES);

/** Show the page in another language from now on. */
export function speak(code) {
  localStorage.setItem("disegno.language", code);
  location.reload();
}

/** Return a number of seconds in words. */
export function seconds(value) {
  if (value < 9.95) return t("{n} s", { n: value.toFixed(1) });
  if (value < 90) return t("{n} s", { n: Math.round(value) });
  if (value < 5400) return t("{n} min", { n: Math.round(value / 60) });
  return t("{n} h", { n: (value / 3600).toFixed(1) });
}

/** Return a number of bytes in words. */
export function bytes(value) {
  const units = ["B", "KB", "MB", "GB", "TB"];
  const power = value > 0 ? Math.min(4, Math.floor(Math.log10(value) / 3)) : 0;
  return `${(value / 1000 ** power).toFixed(power && value / 1000 ** power < 100 ? 1 : 0)} ${units[power]}`;
}

/** Return a moment, in seconds since 1970, as people of this language write it. */
export function moment(value) {
  const style = { dateStyle: "medium", timeStyle: "short" };
  return new Intl.DateTimeFormat(language === "zh" ? "zh-CN" : "en-GB", style).format(new Date(value * 1000));
}
