/* A zip archive of a few files, not compressed: weights do not get smaller. */

const TABLE = new Uint32Array(256).map((_, index) => {
  let value = index;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value;
});
const NEW_YEAR_1980 = [0, 0x21]; // DOS time and date: equal files make equal archives

/** The archive of [{name, content}]: names are ASCII, contents are bytes, and all together are below 4 GB. */
export function packZip(files) {
  const parts = [];
  const directory = [];
  let offset = 0;
  for (const { name, content } of files) {
    const encoded = new TextEncoder().encode(name);
    const about = [20, 0, 0, ...NEW_YEAR_1980];
    const sizes = [crc32(content), content.length, content.length];
    const lengths = [encoded.length, 0];
    const header = join(words(4, [0x04034b50]), words(2, about), words(4, sizes), words(2, lengths), encoded);
    directory.push(
      join(words(4, [0x02014b50]), words(2, [20, ...about]), words(4, sizes), words(2, [...lengths, 0, 0, 0]),
        words(4, [0, offset]), encoded),
    );
    parts.push(header, content);
    offset += header.length + content.length;
  }
  const listed = join(...directory);
  const number = files.length;
  const end = join(words(4, [0x06054b50]), words(2, [0, 0, number, number]), words(4, [listed.length, offset]), words(2, [0]));
  return new Blob([...parts, listed, end], { type: "application/zip" });
}

function crc32(content) {
  let value = 0xffffffff;
  for (const byte of content) value = TABLE[(value ^ byte) & 255] ^ (value >>> 8);
  return (value ^ 0xffffffff) >>> 0;
}

function words(width, values) {
  const bytes = new Uint8Array(width * values.length);
  const view = new DataView(bytes.buffer);
  values.forEach((value, index) => (width === 2 ? view.setUint16(2 * index, value, true) : view.setUint32(4 * index, value, true)));
  return bytes;
}

function join(...arrays) {
  const joined = new Uint8Array(arrays.reduce((sum, array) => sum + array.length, 0));
  let offset = 0;
  for (const array of arrays) {
    joined.set(array, offset);
    offset += array.length;
  }
  return joined;
}
