// A seed is one of 2^64, and a number here is exact below 2^53: a larger seed is a text of digits, which the server takes too.

const SEEDS = 2n ** 64n;
const LARGE = /("(?:sub)?seed":\s*)(\d{16,})/g;

/** Return the seed that a text or a number says, `plus` further on, or null where there is none. After the last comes 0. */
export function seedOf(said, plus = 0) {
  const digits = String(said).trim();
  if (!/^\d+$/.test(digits)) return null;
  const seed = (BigInt(digits) + BigInt(plus)) % SEEDS;
  if (seed < 0n) return null;
  return seed <= Number.MAX_SAFE_INTEGER ? Number(seed) : String(seed);
}

/** Return what a JSON text holds, its large seeds as texts. */
export function parsed(json) {
  return JSON.parse(json.replace(LARGE, '$1"$2"'));
}
