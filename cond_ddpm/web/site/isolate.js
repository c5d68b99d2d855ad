// A service worker that lets the page use several threads on hosts that cannot be told to send headers, such as GitHub Pages.
//
// A browser shares memory between threads only in a page that is isolated from other sites, which two headers ask for. This
// worker adds them to whatever comes from the page's own folder. page.js installs it, and then loads the page once more.

addEventListener("install", () => skipWaiting());
addEventListener("activate", (event) => event.waitUntil(clients.claim()));

addEventListener("fetch", (event) => {
  if (new URL(event.request.url).origin === location.origin) event.respondWith(isolated(event.request));
});

async function isolated(request) {
  const response = await fetch(request);
  if (response.status === 0) return response; // a redirection, which the browser follows itself
  const headers = new Headers(response.headers);
  headers.set("Cross-Origin-Opener-Policy", "same-origin");
  headers.set("Cross-Origin-Embedder-Policy", "require-corp");
  return new Response(response.body, { status: response.status, statusText: response.statusText, headers });
}
