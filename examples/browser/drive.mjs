// Drives the page in headless Chromium and prints what it shows as JSON. Used by tests/test_browser.py.
//
//     node drive.mjs URL CHROMIUM FOLDER [REFUSED ...]
//
// FOLDER takes screenshots; REFUSED are folders of exports that the page must not run.

import { chromium } from "playwright-core";

const PATIENCE = 120_000; // milliseconds; a machine may be busy with other tests
const [url, executablePath, folder, ...refused] = process.argv.slice(2);
const noise = []; // errors on the console, requests elsewhere: there should be none

const browser = await chromium.launch({
  executablePath,
  args: ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"],
});
try {
  const seen = {};
  const page = await open("", { colorScheme: "light" });
  seen.cheapest = await atRest(page, 0);
  await page.screenshot({ path: `${folder}/light.png`, fullPage: true });
  const last = Number(await page.getAttribute("#slider", "max"));
  await page.focus("#slider");
  seen.full = await pressed(page, "End", last);
  seen.again = await pressed(page, "Home", 0);
  seen.dragged = await dragged(page, 0.75);
  seen.running = await switchedWhileRunning(page);
  seen.drawn = await drawn(page);
  await page.emulateMedia({ colorScheme: "dark" });
  await page.screenshot({ path: `${folder}/dark.png`, fullPage: true });
  await page.setViewportSize({ width: 390, height: 844 });
  seen.overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  await page.screenshot({ path: `${folder}/narrow.png`, fullPage: true });
  await page.close();

  const single = await open("?single");
  seen.single = { cheapest: await atRest(single, 0) };
  await single.focus("#slider");
  seen.single.full = await pressed(single, "End", last);
  await single.close();

  seen.noise = [...noise];
  seen.refused = {};
  for (const name of refused) seen.refused[name] = await trouble(`?model=${name}`);
  for (const file of ["ort.wasm.min.mjs", "ort-wasm-simd-threaded.wasm", "digits.json"]) {
    seen.refused[file] = await trouble("", file);
  }
  console.log(JSON.stringify(seen));
} finally {
  await browser.close();
}

async function open(query, options, missing) {
  const page = await browser.newPage({ viewport: { width: 1200, height: 900 }, ...options });
  if (missing) await page.route(`**/${missing}`, (route) => route.fulfill({ status: 404 }));
  page.on("console", (message) => message.type() === "error" && noise.push(message.text()));
  page.on("pageerror", (error) => noise.push(String(error)));
  page.on("request", (request) => request.url().startsWith(url) || noise.push(request.url()));
  await page.goto(url + query);
  return page;
}

/** What the page says instead of starting, of an export or where a file is missing. */
async function trouble(query, missing) {
  const page = await open(query, {}, missing);
  await page.waitForSelector("#trouble:not([hidden])", { timeout: PATIENCE });
  const said = await page.textContent("#trouble-what");
  await page.close();
  return said;
}

/** Wait until the page has measured a configuration, and read it. */
async function atRest(page, index) {
  await page.waitForFunction(
    (index) => document.body.dataset.state === "rest" && document.body.dataset.index === String(index),
    index,
    { timeout: PATIENCE },
  );
  return page.evaluate(read);
}

async function pressed(page, key, index) {
  await page.keyboard.press(key);
  return atRest(page, index);
}

async function dragged(page, share) {
  const box = await page.locator("#slider").boundingBox();
  const height = box.y + box.height / 2;
  await page.mouse.move(box.x + 8, height);
  await page.mouse.down();
  await page.mouse.move(box.x + share * box.width, height, { steps: 12 });
  await page.mouse.up();
  return atRest(page, await page.inputValue("#slider"));
}

/** Move the slider while the page runs without end, then let it come to rest. */
async function switchedWhileRunning(page) {
  await page.click("#keep");
  await page.waitForFunction(() => document.body.dataset.state === "running", null, { timeout: PATIENCE });
  const before = Number(await page.inputValue("#slider"));
  await page.focus("#slider");
  for (let i = 0; i < 3; i++) await page.keyboard.press("ArrowLeft");
  await page.click("#keep");
  return atRest(page, Math.max(before - 3, 0));
}

/** Draw a one. */
async function drawn(page) {
  await page.locator("#pad").scrollIntoViewIfNeeded();
  const box = await page.locator("#pad").boundingBox();
  await page.mouse.move(box.x + box.width / 2, box.y + 0.1 * box.height);
  await page.mouse.down();
  await page.mouse.move(box.x + box.width / 2, box.y + 0.9 * box.height, { steps: 6 });
  await page.mouse.up();
  await page.waitForSelector("#sketch-answer b", { timeout: PATIENCE });
  return page.textContent("#sketch-answer");
}

/** What the page shows; runs in the page. */
function read() {
  const text = (id) => document.getElementById(id).textContent;
  const cells = [...document.querySelectorAll("#digits li")].map(({ dataset }) => dataset);
  const numbers = (name) => cells.map((cell) => Number(cell[name]));
  return {
    index: Number(document.getElementById("slider").value),
    answer: numbers("answer"),
    position: numbers("position"),
    confidence: numbers("confidence"),
    meanPosition: Number(text("mean-position")),
    cost: Number.parseFloat(text("cost")) / 100,
    right: Number.parseInt(text("right"), 10),
    milliseconds: Number.parseFloat(text("milliseconds")),
    fullMilliseconds: Number(text("full-milliseconds").match(/[\d.]+/)[0]),
    left: [...document.querySelectorAll("#shares li")].map((row) => [Number(row.dataset.position), Number(row.querySelector("b").textContent)]),
  };
}
