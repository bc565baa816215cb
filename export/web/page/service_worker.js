// This file holds what stands between the page and its server: it lets the page use threads, and keeps it for when there
// is no server.

const CACHE = "nanochat";
const MANIFEST = "nanochat.json";
// What the page itself consists of is smaller, and is kept at once; models are kept when they are first asked for.
const SMALL_BYTES = 2 ** 20;

addEventListener("install", (event) => event.waitUntil(install()));
addEventListener("activate", (event) => event.waitUntil(clients.claim()));
addEventListener("fetch", (event) => {
  const { request } = event;
  if (request.method === "GET" && new URL(request.url).origin === location.origin) {
    event.respondWith(answer(event));
  }
});

async function install() {
  const { files } = await (await fetch(MANIFEST)).json();
  const small = Object.keys(files).filter((name) => files[name].bytes < SMALL_BYTES);
  const cache = await caches.open(CACHE);
  // What is missing is told by the page, which can also do without being kept.
  await Promise.allSettled(["./", MANIFEST, ...small].map((name) => cache.add(name)));
  await skipWaiting();
}

async function answer(event) {
  const { request } = event;
  const cache = await caches.open(CACHE);
  let response;
  try {
    response = await fetch(request);
  } catch {
    const kept = await cache.match(request, { ignoreSearch: true });
    return kept ? isolated(kept) : Response.error();
  }
  if (response.status === 200) event.waitUntil(keep(cache, request, response.clone()));
  return isolated(response);
}

async function keep(cache, request, response) {
  const kept = await cache.match(request);
  const date = response.headers.get("last-modified");
  if (kept && date && date === kept.headers.get("last-modified")) {
    await response.body?.cancel();
  } else {
    // A full disk or a private window keeps nothing; the page works all the same.
    await cache.put(request, response).catch(() => undefined);
  }
}

/** The same response, from a server that isolates its pages, which is what browsers ask for before they give threads. */
function isolated({ body, status, statusText, headers }) {
  const more = new Headers(headers);
  more.set("Cross-Origin-Opener-Policy", "same-origin");
  more.set("Cross-Origin-Embedder-Policy", "require-corp");
  more.set("Cross-Origin-Resource-Policy", "same-origin");
  return new Response(body, { status, statusText, headers: more });
}
