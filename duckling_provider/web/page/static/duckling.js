// Theme and time zone like Airflow's, links out of the frame, buttons that are pressed once, and a run that is live.
// Everything works without it, only less comfortably.
"use strict";

(() => {
  const root = document.documentElement;
  const framed = (() => {
    try {
      return window.parent !== window && Boolean(window.parent.document);
    } catch {
      return false; // another origin's frame
    }
  })();
  const setting = (name) => {
    try {
      return window.localStorage.getItem(name);
    } catch {
      return null;
    }
  };

  // ---- theme: that of the page around us, else what was chosen in Airflow, else the system's
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => {
    if (framed) {
      const around = window.parent.document.documentElement.classList;
      if (around.contains("dark") || around.contains("light")) return around.contains("dark");
    }
    const chosen = setting("theme");
    return chosen === "dark" || (chosen !== "light" && system.matches);
  };
  const paint = () => root.classList.toggle("dark", isDark());
  paint();
  system.addEventListener("change", paint);
  window.addEventListener("storage", paint);
  if (framed) {
    const watch = new MutationObserver(paint);
    watch.observe(window.parent.document.documentElement, { attributes: true, attributeFilter: ["class"] });
    window.addEventListener("pagehide", () => watch.disconnect());
  }

  // ---- times in the zone that Airflow shows; the title keeps UTC
  const zone = (() => {
    const chosen = (setting("timezone") || "").replace(/^"|"$/g, "");
    return chosen && chosen !== "local" ? chosen : undefined;
  })();
  const localized = (scope) => {
    let format;
    try {
      format = new Intl.DateTimeFormat("sv-SE", { timeZone: zone, dateStyle: "short", timeStyle: "medium" });
    } catch {
      return;
    }
    for (const time of scope.querySelectorAll("time:not(.ago)")) {
      time.textContent = format.format(new Date(time.dateTime));
    }
  };

  // ---- links to Airflow: the frame may not navigate the page around it, but an anchor of that page may
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-airflow]");
    if (!link || !framed || event.defaultPrevented || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    const outside = window.parent.document.createElement("a");
    outside.href = link.href;
    window.parent.document.body.append(outside);
    outside.click();
    outside.remove();
  });

  // ---- buttons: once, and they say that something is on its way
  document.addEventListener("submit", (event) => {
    const button = event.submitter;
    if (!button || event.target.method !== "post") return;
    // After the form's data were collected.
    window.setTimeout(() => {
      button.disabled = true;
      if (button.dataset.busy) button.textContent = button.dataset.busy;
    });
  });
  window.addEventListener("pageshow", (event) => {
    if (event.persisted) window.location.reload(); // from the back/forward cache: its state is old
  });

  // ---- a run, live
  const EVERY = 2000;
  const LINES = 12;
  const follow = (run) => {
    const said = document.getElementById("said");
    const stale = document.getElementById("stale");
    const log = document.querySelector(".log");
    const now = () => document.getElementById("now").dataset;

    const refresh = async () => {
      let again = true;
      try {
        const answer = await fetch(run.dataset.part, { headers: { Accept: "text/html" } });
        if (answer.status === 401 || answer.status === 403 || answer.status === 404) {
          window.location.reload(); // which tells why
          return;
        }
        if (!answer.ok) throw new Error(String(answer.status));
        const text = await answer.text();
        const focused = document.activeElement && run.contains(document.activeElement);
        run.innerHTML = text;
        localized(run);
        if (focused) run.querySelector("a")?.focus();
        if (said.textContent !== now().said) said.textContent = now().said;
        again = now().active === "yes";
        stale.hidden = true;
        await readLog();
      } catch {
        stale.hidden = false;
      }
      if (again) window.setTimeout(refresh, EVERY);
    };

    // Airflow's own API lets only those read it who may.
    const readLog = async () => {
      const { task, try: attempt } = now();
      if (!task || !log) return; // no log for those who may not know where data lies
      const url = `${log.dataset.logs}/${encodeURIComponent(task)}/logs/${attempt}`;
      const answer = await fetch(url, { headers: { Accept: "application/json" } }).catch(() => null);
      if (!answer || !answer.ok) return;
      const { content } = await answer.json();
      if (!Array.isArray(content)) return;
      let grouped = false; // Airflow's own lines around ours
      const lines = content
        .filter((line) => {
          const event = String(line.event ?? "");
          const border = event.startsWith("::");
          if (border) grouped = event.startsWith("::group::");
          return line.timestamp && event && !border && !grouped;
        })
        .slice(-LINES);
      if (!lines.length) return;
      log.querySelector("pre").textContent = lines
        .map((line) => `${line.timestamp.slice(11, 19)}  ${line.level && line.level !== "info" ? `${line.level.toUpperCase()}  ` : ""}${line.event}`)
        .join("\n");
      log.querySelector("summary").textContent = `Last lines of the log of ${task}`;
      log.hidden = false;
    };

    said.textContent = now().said;
    if (now().active === "yes") {
      if (log) log.open = true;
      window.setTimeout(refresh, EVERY);
    }
    readLog();
  };

  document.addEventListener("DOMContentLoaded", () => {
    localized(document);
    const run = document.getElementById("run");
    if (run) follow(run);
  });
})();
