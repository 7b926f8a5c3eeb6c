// The text that A1111, and this program, write into JPEG and WebP files: the user's comment of their EXIF.

const [EXIF_FOLDER, USER_COMMENT] = [0x8769, 0x9286];
const latin = (some) => [...some].map((byte) => String.fromCharCode(byte)).join("");

/** Return the EXIF block of a JPEG's or a WebP's bytes, or null. */
function blockOf(data) {
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  if (data[0] === 0xff && data[1] === 0xd8) {
    for (let at = 2; at + 4 <= data.length && data[at] === 0xff && data[at + 1] !== 0xda; at += 2 + view.getUint16(at + 2)) {
      if (data[at + 1] === 0xe1 && latin(data.subarray(at + 4, at + 10)) === "Exif\0\0") return data.subarray(at + 10, at + 2 + view.getUint16(at + 2));
    }
  } else if (latin(data.subarray(0, 4)) === "RIFF" && latin(data.subarray(8, 12)) === "WEBP") {
    for (let at = 12; at + 8 <= data.length; at += 8 + view.getUint32(at + 4, true) + (view.getUint32(at + 4, true) % 2)) {
      if (latin(data.subarray(at, at + 4)) !== "EXIF") continue;
      const block = data.subarray(at + 8, at + 8 + view.getUint32(at + 4, true));
      return latin(block.subarray(0, 6)) === "Exif\0\0" ? block.subarray(6) : block;
    }
  }
  return null;
}

/** Return { at, size } of an entry of a folder of EXIF, or null. */
function entryOf(view, folder, tag, little) {
  for (let n = 0; n < view.getUint16(folder, little); n += 1) {
    const at = folder + 2 + 12 * n;
    if (view.getUint16(at, little) === tag) return { at: view.getUint32(at + 8, little), size: view.getUint32(at + 4, little) };
  }
  return null;
}

/** Return the text of a comment: 8 bytes name its letters. UTF-16 is of either order. */
function textOf(comment) {
  const letters = comment.subarray(8);
  if (latin(comment.subarray(0, 7)) !== "UNICODE") return new TextDecoder().decode(letters);
  const highFirst = letters.filter((byte, n) => n % 2 === 0 && byte === 0).length >= letters.filter((byte, n) => n % 2 === 1 && byte === 0).length;
  return new TextDecoder(highFirst ? "utf-16be" : "utf-16le").decode(letters);
}

/** Return the user's comment of a JPEG or a WebP, or "". Throws a RangeError where the file is cut. */
export function commentOf(data) {
  const block = blockOf(data);
  if (!block) return "";
  const view = new DataView(block.buffer, block.byteOffset, block.byteLength);
  const little = view.getUint16(0) === 0x4949;
  const folder = entryOf(view, view.getUint32(4, little), EXIF_FOLDER, little);
  const comment = folder && entryOf(view, folder.at, USER_COMMENT, little);
  return comment ? textOf(block.subarray(comment.at, comment.at + comment.size)).replace(/\0+$/, "") : "";
}
