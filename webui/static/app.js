// redirectd: what the admin page does by itself. Everything works without it but live updates.
"use strict";

(function () {
  const LIVE = { "X-Live": "1" };
  let paused = false;

  // Times: the server writes them in the gateway's zone, here they get the reader's.
  const format = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
  const formatLong = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "long" });

  function two(large, largeUnit, small, smallUnit) {
    return large + " " + largeUnit + (small ? " " + small + " " + smallUnit : "");
  }

  function duration(seconds) {
    const whole = Math.max(0, Math.floor(seconds));
    if (whole < 60) return whole + " s";
    const minutes = Math.floor(whole / 60);
    if (minutes < 60) return minutes + " min";
    const hours = Math.floor(minutes / 60);
    if (hours < 24) return two(hours, "h", minutes % 60, "min");
    return two(Math.floor(hours / 24), "d", hours % 24, "h");
  }

  function setText(element, text) {
    if (element.textContent !== text) element.textContent = text;
  }

  // The gateway's clock may be off: ages count from what it said when the page was made.
  let ahead = 0;

  function noteClock(response) {
    const date = Date.parse(response.headers.get("Date"));
    if (!Number.isNaN(date)) {
      const off = date - Date.now();
      ahead = Math.abs(off) < 2000 ? 0 : off;
    }
  }

  function tick(root) {
    const now = Date.now() + ahead;
    for (const element of root.querySelectorAll("time[data-ago]")) {
      setText(element, duration((now - Date.parse(element.dateTime)) / 1000));
    }
  }

  function dress(root) {
    for (const element of root.querySelectorAll("time")) {
      const moment = new Date(element.dateTime);
      element.title = formatLong.format(moment);
      if (element.hasAttribute("data-when")) setText(element, format.format(moment));
    }
    tick(root);
  }

  // How the page says whether it is up to date.
  const bar = document.querySelector("[data-livebar]");

  function say(state, text) {
    if (!bar) return;
    bar.classList.toggle("off", state === "off");
    bar.classList.toggle("lost", state === "lost");
    setText(bar.querySelector("[data-livestate]"), text);
  }

  class SignedOut extends Error {}

  async function ask(url) {
    const stop = new AbortController();
    const timer = setTimeout(() => stop.abort(), 10000);
    try {
      const response = await fetch(url, { headers: LIVE, cache: "no-store", signal: stop.signal });
      if (response.status === 401) throw new SignedOut();
      if (!response.ok) throw new Error(String(response.status));
      noteClock(response);
      return await (response.headers.get("Content-Type").startsWith("application/json")
        ? response.json()
        : response.text());
    } finally {
      clearTimeout(timer);
    }
  }

  // One loop a page: the next question is asked when the last one is answered, never before.
  function every(seconds, update) {
    let wait = seconds;
    async function turn() {
      if (!paused && !document.hidden) {
        try {
          await update();
          wait = seconds;
          say("on", "Live");
        } catch (error) {
          if (error instanceof SignedOut) {
            location.reload();
            return;
          }
          wait = Math.min(wait * 2, 30);
          say("lost", "No answer: this may be out of date");
        }
      }
      setTimeout(turn, wait * 1000);
    }
    setTimeout(turn, seconds * 1000);
  }

  // A region is replaced when it differs, but not under somebody's fingers.
  function liveRegion(region) {
    const name = region.dataset.live;
    let last = null;
    return async function () {
      const text = await ask(location.href);
      if (text === last) return;
      const page = new DOMParser().parseFromString(text, "text/html");
      const fresh = page.querySelector('[data-live="' + name + '"]');
      if (!fresh) {
        location.reload();
        return;
      }
      if (region.contains(document.activeElement) || !getSelection().isCollapsed) return;
      last = text;
      const before = region.innerHTML;
      dress(fresh);
      if (fresh.innerHTML !== before) region.replaceChildren(...fresh.childNodes);
    };
  }

  // The table: only rows that differ come over the network, and only they are touched.
  function liveTable(table) {
    const body = table.tBodies[0];
    const address = table.dataset.rows + (table.dataset.rows.includes("?") ? "&" : "?") + "since=";
    let version = table.dataset.version;

    function parse(html) {
      const template = document.createElement("template");
      template.innerHTML = html;
      return template.content.querySelector("tr");
    }

    function place(order, rows) {
      const focused = document.activeElement && document.activeElement.closest("tr");
      const focusedId = focused && body.contains(focused) ? focused.id : null;
      const old = new Map();
      for (const row of body.rows) old.set(row.id.slice(1), row);
      for (const [key, html] of Object.entries(rows)) {
        const row = parse(html);
        dress(row);
        const before = old.get(key);
        if (before) before.replaceWith(row);
        row.classList.add("fresh");
        setTimeout(() => row.classList.remove("fresh"), 1500);
        old.set(key, row);
      }
      let at = body.firstElementChild;
      for (const key of order) {
        const row = old.get(key);
        if (!row) return false;
        old.delete(key);
        if (row === at) at = at.nextElementSibling;
        else body.insertBefore(row, at);
      }
      for (const row of old.values()) row.remove();
      if (focusedId && !body.contains(document.activeElement)) {
        const link = document.querySelector("#" + CSS.escape(focusedId) + " a");
        if (link) link.focus({ preventScroll: true });
      }
      return true;
    }

    return async function () {
      const answer = await ask(address + version);
      setText(document.querySelector("[data-total]"), String(answer.total));
      setText(document.querySelector("[data-matching]"), String(answer.matching));
      for (const element of document.querySelectorAll("[data-count]")) {
        setText(element, String(answer.counts[element.dataset.count] || 0));
      }
      if (answer.order !== null) {
        document.getElementById("empty").hidden = answer.order.length > 0;
        document.getElementById("tablebox").hidden = answer.order.length === 0;
        // A row that is missing here: ask for all of them the next time.
        version = place(answer.order, answer.rows) ? answer.version : "";
      }
    };
  }

  dress(document);
  setInterval(() => { if (!paused && !document.hidden) tick(document); }, 5000);

  for (const region of document.querySelectorAll("[data-live]")) {
    every(Number(region.dataset.every), liveRegion(region));
  }
  for (const table of document.querySelectorAll("table[data-rows]")) {
    every(Number(table.dataset.every), liveTable(table));
  }

  if (bar) {
    bar.hidden = false;
    document.querySelector("[data-nolive]").hidden = true;
    bar.querySelector("[data-pause]").addEventListener("click", (event) => {
      paused = !paused;
      event.currentTarget.setAttribute("aria-pressed", String(paused));
      say(paused ? "off" : "on", paused ? "Paused" : "Live");
    });
  }

  // A page about a daemon that is down looks again by itself.
  if (document.querySelector("[data-down]")) {
    setTimeout(() => location.reload(), 5000);
  }

  for (const button of document.querySelectorAll("[data-copy]")) {
    if (!navigator.clipboard) continue;
    button.hidden = false;
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).value);
      setText(button, "Copied");
    });
  }

  // A file that is far too big is not even sent; the server refuses it all the same.
  for (const form of document.querySelectorAll("form[data-max-file]")) {
    const input = form.querySelector("input[type=file]");
    const fault = document.getElementById(input.id + "-fault");
    form.addEventListener("submit", (event) => {
      const file = input.files[0];
      const tooBig = Boolean(file) && file.size > Number(form.dataset.maxFile);
      fault.hidden = !tooBig;
      if (tooBig) {
        event.preventDefault();
        fault.textContent = "This file is too large to be an export of redirectd.";
        input.focus();
      }
    });
  }
})();
