// The folder of an exported network: its manifest and files, checked before anything in them is used.
//
//     const { manifest, files } = await fetchExport(new URL("model/", document.baseURI));

const FORMAT = "offramp.export";
const NEWEST = 1;
const KINDS = ["onnx", "onnx-single"];

/** An export that is missing, damaged, or not for this page; the message says what to do. */
export class ExportError extends Error {
  name = "ExportError";
}

/**
 * Fetch an export.
 *
 * @param {URL} folder ends in a slash.
 * @returns {Promise<{manifest: object, files: Map<string, Uint8Array>}>} the files by name.
 * @throws {ExportError} a file is missing or differs from the manifest, or the version is unknown.
 */
export async function fetchExport(folder) {
  const manifest = await readManifest(folder);
  const fetched = Object.entries(manifest.files).map(async ([name, claimed]) => {
    if (/[/\\:]/.test(name)) throw new ExportError(`${folder.href}: ${name} is not the name of a file in the folder`);
    return [name, await readFile(folder, name, claimed)];
  });
  return { manifest, files: new Map(await Promise.all(fetched)) };
}

async function readManifest(folder) {
  const response = await get(new URL("manifest.json", folder));
  if (!response.ok) {
    throw new ExportError(
      `expected an exported network at ${folder.href}, found no manifest.json (HTTP ${response.status}); ` +
        "make one with: python make_model.py ARTIFACT",
    );
  }
  const text = await response.text();
  const manifest = parse(text, folder);
  if (manifest?.format !== FORMAT) {
    throw new ExportError(`${folder.href}: expected ${FORMAT}, got format ${manifest?.format}; export it again`);
  }
  if (manifest.version !== NEWEST) {
    throw new ExportError(
      `${folder.href}: version ${manifest.version} of the export, this page reads ${NEWEST}; ` +
        "export again, or take the page that came with that release",
    );
  }
  if (!KINDS.includes(manifest.kind)) {
    throw new ExportError(
      `${folder.href}: expected an export of kind ${KINDS.join(" or ")}, got ${manifest.kind}; ` +
        "write one with: offramp export --to onnx",
    );
  }
  const claimed = manifest.sha256;
  const found = await digest(canonicalBytes(text));
  if (found !== null && found !== claimed) {
    throw new ExportError(
      `${folder.href}manifest.json does not match its checksum; it was changed, export again`,
    );
  }
  return manifest;
}

async function readFile(folder, name, claimed) {
  const response = await get(new URL(encodeURIComponent(name), folder));
  if (!response.ok) {
    throw new ExportError(`${folder.href}: ${name} is missing (HTTP ${response.status}); copy the whole folder again`);
  }
  const bytes = new Uint8Array(await response.arrayBuffer());
  if (bytes.length !== claimed.bytes) {
    throw new ExportError(
      `${folder.href}: expected ${claimed.bytes} bytes in ${name}, got ${bytes.length}; copy the folder again`,
    );
  }
  const found = await digest(bytes);
  if (found !== null && found !== claimed.sha256) {
    throw new ExportError(
      `${folder.href}: ${name} does not match its checksum; it was changed or damaged, export again`,
    );
  }
  return bytes;
}

async function get(url) {
  try {
    return await fetch(url, { cache: "no-cache" }); // a page of an older export must not mix with a newer one
  } catch (error) {
    throw new ExportError(`cannot reach ${url.href} (${error.message}); is the server still running?`);
  }
}

function parse(text, folder) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new ExportError(`${folder.href}manifest.json is not JSON (${error.message}); export it again`);
  }
}

/** SHA-256 in hexadecimal; null where the browser has none to give (plain HTTP from another machine). */
async function digest(bytes) {
  if (bytes === null || !globalThis.crypto?.subtle) return null;
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(hash, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** The manifest without its checksum as the exporter hashed it; null in browsers that lose how numbers were written. */
function canonicalBytes(text) {
  const numbers = new Set();
  const document = JSON.parse(text, (key, value, context) => {
    if (typeof value !== "number") return value;
    const written = { source: context?.source };
    numbers.add(written);
    return written;
  });
  if ([...numbers].some((written) => written.source === undefined)) return null;
  delete document.sha256;
  return new TextEncoder().encode(canonical(document, numbers));
}

function canonical(value, numbers) {
  if (numbers.has(value)) return value.source;
  if (Array.isArray(value)) return `[${value.map((each) => canonical(each, numbers)).join(", ")}]`;
  if (value !== null && typeof value === "object") {
    const keys = Object.keys(value).sort();
    return `{${keys.map((key) => `${quoted(key)}: ${canonical(value[key], numbers)}`).join(", ")}}`;
  }
  return typeof value === "string" ? quoted(value) : JSON.stringify(value);
}

function quoted(text) {
  const code = (letter) => `\\u${letter.charCodeAt(0).toString(16).padStart(4, "0")}`;
  return JSON.stringify(text).replace(/[\u007f-\uffff]/g, code);
}
