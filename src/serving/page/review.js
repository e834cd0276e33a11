// The page where people decide. Talks to /review/api alone; keeps the reviewer's key for this tab, and nothing else.

const POLL_MS = 3000, PROGRESS_MS = 10000, TOAST_MS = 7000, LONGEST_RETRY_MS = 15000;
const SLIP_MS = 250;  // a second tap within this is one tap too many
const KEPT = "flywheel.reviewer";
const REASONS = {
  teacher_unsure: ["LLM unsure", "The LLM was not sure enough"],
  teacher_failed: ["LLM failed", "The LLM gave no usable answer"],
  over_budget: ["Over budget", "The LLM’s budget for this hour is spent"],
  disagreement: ["Disagreement", "Student and LLM are both sure, of different classes"],
  second_opinion: ["Second opinions", "Second opinion: somebody has answered this one"],
};
const ESCALATED = {
  doubtful: "The student alone was not sure.",
  uncertified: "Nothing certifies the student yet, so it answers nothing alone.",
  audit: "The student was sure; this item was drawn for an audit.",
};

const $ = (id) => document.getElementById(id);
const make = (tag, className, ...content) => {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...content);
  return node;
};
const plain = (name) => name.replaceAll("_", " ");
const percent = (share) => `${(100 * share).toFixed(share > 0.995 && share < 1 ? 1 : 0)}%`;
const plural = (n, one, many = `${one}s`) => `${n} ${n === 1 ? one : many}`;

function lasting(seconds) {
  if (seconds < 60) return `${Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min`;
  if (seconds < 2 * 86400) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

let access = { keys: true };
let secret = null;
let task = null;
let state = { item: null, ahead: null, last: null, progress: null };
let reason = "";
let busy = false;        // a request that changes something is under way
let seen = false;        // the picture is on the screen, so that it can be answered
let shownAt = 0, touchedAt = 0, paused = false, shortcuts = true;
let pollTimer = 0, leaseTimer = 0, toastTimer = 0, retry = null;
const pictures = new Map();  // key → promise of a blob's address; the last few

// Asking the server.

class Refused extends Error {
  constructor(status, body, wait) {
    super(body?.error?.message || `The server answered with status ${status}.`);
    this.status = status;
    this.body = body;
    this.wait = wait;
  }
}

function headers() {
  return access.keys ? { Authorization: `Bearer ${secret}` } : { "X-Reviewer": secret };
}

async function ask(path, body) {
  const sent = body && { method: "POST", body: JSON.stringify(body) };
  const response = await fetch(`review/api/${path}`, {
    ...sent, cache: "no-store", headers: { ...headers(), ...(body && { "Content-Type": "application/json" }) },
    signal: AbortSignal.timeout(45000),
  });
  const said = await response.json().catch(() => null);
  if (!response.ok) throw new Refused(response.status, said, Number(response.headers.get("Retry-After")) || 0);
  return said;
}

// Do it until it is done: an answer that was sent may be sent again, the server knows that it has it.
async function act(doing, done, failed = () => {}) {
  if (busy) return;
  busy = true;
  disable();
  let delay = 1000;
  for (;;) {
    let said;
    try {
      said = await doing();
    } catch (error) {
      if (!(error instanceof Refused)) {
        if (!(error instanceof TypeError || error instanceof DOMException)) throw error;
        await pause(delay, "No connection to the server. What you did is sent as soon as it is back.", "Try now");
        delay = Math.min(2 * delay, LONGEST_RETRY_MS);
        continue;
      }
      if (error.status === 429) {
        await pause(1000 * Math.max(1, error.wait), "Too many requests. Going on in a moment.", "Try now", true);
        continue;
      }
      busy = false;
      if (error.status === 401 || (error.status === 403 && !task)) {
        signIn(secret === null ? "" : error.message);
      } else if (error.status === 409 && error.body?.progress) {
        banner(error.message, { mild: true });
        show(error.body, error.message);
      } else {
        failed();
        banner(error.message, { button: "Try again", press: () => act(doing, done, failed) });
        enable();
      }
      return;
    }
    busy = false;
    banner();
    done(said);
    return;
  }
}

function pause(ms, message, button, mild = false) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    banner(message, { mild, button, press: () => { clearTimeout(timer); resolve(); } });
    retry = () => { clearTimeout(timer); resolve(); };
  });
}

function banner(message = "", { mild = false, button = "", press = null } = {}) {
  const box = $("banner");
  retry = null;
  box.hidden = !message;
  box.classList.toggle("mild", mild);
  if ($("banner-text").textContent !== message) $("banner-text").textContent = message;
  $("banner-button").hidden = !button;
  $("banner-button").textContent = button;
  $("banner-button").onclick = press;
}

function announce(text) {
  $("announcer").textContent = "";
  setTimeout(() => { $("announcer").textContent = text; }, 40);  // or the same text twice would be said once
}

// Who is there.

function signIn(error = "") {
  clearTimeout(pollTimer);
  clearTimeout(leaseTimer);
  sessionStorage.removeItem(KEPT);
  secret = null;
  task = null;
  only("sign-in");
  for (const id of ["tools", "progress"]) $(id).hidden = true;
  toast();
  $("sign-in-why").textContent = access.keys
    ? "Your reviewer’s key says who you are. It is kept in this tab until you close it, and goes to this server alone."
    : "This server runs without keys, for this machine alone. Your answers are kept under your name.";
  $("secret-label").textContent = access.keys ? "Reviewer’s key" : "Your name";
  $("secret").type = access.keys ? "password" : "text";
  if (access.keys) $("secret").removeAttribute("pattern");
  else {
    $("secret").pattern = "[A-Za-z0-9._\\-]{1,40}";
    $("secret").title = "Up to 40 letters, digits, dots, hyphens and underscores, without spaces";
  }
  $("secret").value = "";
  $("sign-in-error").textContent = error;
  $("secret").focus();
}

function begin() {
  act(() => ask("task"), (said) => {
    sessionStorage.setItem(KEPT, secret);
    task = said;
    $("task").textContent = plain(said.task);
    document.title = title();
    $("rehearsal").hidden = !said.rehearsal;
    $("reviewer").textContent = `Signed in as ${said.reviewer}`;
    $("lease").textContent = lasting(said.lease_s);
    $("tools").hidden = $("progress").hidden = false;
    makeChoices();
    fetchNext({ moved: true });
  });
}

// The item.

function fetchNext({ moved = false } = {}) {
  const query = reason ? `next?reason=${encodeURIComponent(reason)}` : "next";
  act(() => ask(query), (said) => show(said, "", moved));
}

function only(id) {
  for (const other of ["sign-in", "nothing", "item"]) $(other).hidden = other !== id;
}

function show(said, before = "", moved = false) {
  const old = state.item?.key, within = $("work").contains(document.activeElement);
  state = said;
  paused = false;
  showProgress();
  clearTimeout(pollTimer);
  clearTimeout(leaseTimer);
  if (!said.item) {
    showNothing(before);
    return;
  }
  const item = said.item;
  if (reason && item.reason !== reason) setReason("");  // an undone item of another reason came back
  only("item");
  pollTimer = setTimeout(pollProgress, PROGRESS_MS);
  leaseTimer = setTimeout(leaseEnds, Math.max(1000, 1000 * item.left_s - 1500));
  if (item.key === old && seen) {
    enable();
    return;
  }
  shownAt = performance.now();
  touch();
  describe(item);
  showPicture(item.key);
  if (said.ahead) picture(said.ahead).catch(() => {});
  if (task.classes.length > 9) narrow("");
  if (within || moved) $("why").focus({ preventScroll: true });
  if (innerWidth < 900) scrollTo({ top: 0 });
  announce([before, spoken(item)].filter(Boolean).join(" "));
}

function describe(item) {
  const [, why] = REASONS[item.reason] || [item.reason, item.reason];
  const blind = item.reason === "second_opinion";
  $("why").textContent = why;
  $("why-more").textContent = [
    blind ? "What was said before is hidden, by people and by models, so that yours is your own." : ESCALATED[item.escalated] || item.escalated,
    blind ? "" : `Waiting for ${lasting(item.waits_s)}.`,
    item.skipped ? "You skipped it before; nothing else waits." : "",
  ].filter(Boolean).join(" ");
  $("opinions").replaceChildren(...[
    item.student && opinion("student", "Student", item.student, others(item.student)),
    item.teacher && opinion("teacher", "LLM", item.teacher, item.teacher.why && `“${item.teacher.why}”`),
  ].filter(Boolean));
}

function opinion(kind, who, said, more) {
  const sure = said.probability;
  const row = make("div", `opinion ${kind}`, make("dt", "", who), make("dd", "said", plain(said.label)),
    make("dd", "sure", sure === null ? "" : percent(sure)));
  if (sure !== null) {
    const fill = make("i");
    fill.style.width = `${100 * sure}%`;
    const bar = make("dd", "bar", fill);
    bar.setAttribute("aria-hidden", "true");
    row.append(bar);
  }
  const words = [sure === null ? "probability unknown" : "", more].filter(Boolean).join(", ");
  if (words) row.append(make("dd", "more", words));
  return row;
}

function others(student) {
  const ranked = task.classes.map(({ name }, n) => [name, student.probabilities[n] || 0])
    .filter(([name, share]) => name !== student.label && share >= 0.05).sort((a, b) => b[1] - a[1]).slice(0, 2);
  return ranked.length ? `or ${ranked.map(([name, share]) => `${plain(name)} ${percent(share)}`).join(", ")}` : "";
}

function spoken(item) {
  const parts = [`Next item: ${$("why").textContent}.`];
  for (const [who, said] of [["Student", item.student], ["LLM", item.teacher]]) {
    if (said) parts.push(`${who}: ${plain(said.label)}${said.probability === null ? "" : `, ${percent(said.probability)}`}.`);
  }
  return parts.join(" ");
}

function showNothing(before) {
  const { waiting, held } = state.progress;
  const elsewhere = Object.entries(state.progress.reasons).reduce((sum, [name, n]) => sum + (name === reason ? 0 : n), 0);
  const was = $("nothing").hidden || $("nothing").classList.contains("paused");
  only("nothing");
  $("nothing").classList.remove("paused");
  $("nothing-title").textContent = reason ? "None of these is waiting" : "Nothing is waiting";
  $("nothing-text").textContent = [
    held && held === waiting ? `${plural(held, "item is", "items are")} with other reviewers.` : "",
    "New items appear here by themselves.",
  ].filter(Boolean).join(" ");
  $("nothing-button").hidden = !(reason && elsewhere);
  $("nothing-button").textContent = `Show everything (${elsewhere})`;
  $("nothing-button").onclick = () => { setReason(""); fetchNext({ moved: true }); };
  $("nothing-undo").hidden = !state.last;
  $("nothing-undo").textContent = state.last ? `Undo ${plain(state.last.label)}` : "";
  if (was) {
    announce([before, `${$("nothing-title").textContent}. ${$("nothing-text").textContent}`].filter(Boolean).join(" "));
    if (document.activeElement === document.body || !document.activeElement.checkVisibility()) $("nothing-title").focus();
  }
  pollTimer = setTimeout(pollNext, POLL_MS);
}

// Nobody looks at a hidden tab: it holds no item, and only says in its title that there are some.
function pollNext() {
  if (document.hidden) pollProgress();
  else fetchNext();
}

async function pollProgress() {
  clearTimeout(pollTimer);
  pollTimer = setTimeout(state.item && !paused || document.hidden ? pollProgress : pollNext, PROGRESS_MS);
  if (busy || !task) return;
  try {
    state.progress = (await ask("progress")).progress;
    showProgress();
  } catch { /* what the reviewer does next will say it, and try again */ }
}

function leaseEnds() {
  if (busy) {
    leaseTimer = setTimeout(leaseEnds, 1000);
  } else if (!document.hidden && performance.now() - touchedAt < 1000 * task.lease_s) {
    fetchNext();  // which holds it anew
  } else {
    away();
  }
}

function away() {
  paused = true;
  clearTimeout(pollTimer);
  toast();
  only("nothing");
  $("nothing").classList.add("paused");
  $("nothing-title").textContent = "Paused";
  $("nothing-text").textContent = "You seem to be away, so the item went back to the other reviewers. Nothing was lost.";
  $("nothing-button").hidden = false;
  $("nothing-button").textContent = "Go on";
  $("nothing-undo").hidden = true;
  $("nothing-button").onclick = () => { seen = false; state.item = null; fetchNext({ moved: true }); };
  $("nothing-button").focus();
  pollTimer = setTimeout(pollProgress, PROGRESS_MS);
}

function touch() { touchedAt = performance.now(); }

// The picture.

function picture(key) {
  let found = pictures.get(key);
  if (!found) {
    found = fetch(`review/api/image/${key}`, { headers: headers() }).then(async (response) => {
      if (!response.ok) throw new Refused(response.status, await response.json().catch(() => null));
      const address = URL.createObjectURL(await response.blob());
      const decoded = new Image();
      decoded.src = address;
      await decoded.decode().catch(() => { throw new Refused(415, { error: { message: "This browser cannot show the picture." } }); });
      return address;
    });
    pictures.set(key, found);
    found.catch(() => pictures.delete(key));
    for (const [old, address] of pictures) {
      if (pictures.size <= 6) break;
      if (old === state.item?.key || old === key) continue;
      pictures.delete(old);
      address.then(URL.revokeObjectURL, () => {});
    }
  }
  return found;
}

async function showPicture(key) {
  const image = $("picture"), error = $("picture-error");
  seen = false;
  disable();
  image.hidden = error.hidden = true;
  $("stage").classList.add("loading");
  $("size").textContent = "";
  try {
    const address = await picture(key);
    if (state.item?.key !== key) return;
    image.src = address;
    await image.decode();
    if (state.item?.key !== key) return;
    image.hidden = false;
    seen = true;
    $("size").textContent = `${image.naturalWidth} × ${image.naturalHeight} pixels`;
    $("full-picture").src = address;
  } catch (failure) {
    if (state.item?.key !== key) return;
    error.hidden = false;
    const refused = failure instanceof Refused;
    error.textContent = refused ? `${failure.message} Skip this item.` : "The picture did not arrive. It is tried again in a moment.";
    announce(error.textContent);
    if (!refused || failure.status === 429) setTimeout(() => state.item?.key === key && !seen && showPicture(key), 3000);
  }
  $("stage").classList.remove("loading");
  enable();
}

function look(pixels) {
  $("picture").classList.toggle("pixels", pixels);
  $("full-picture").classList.toggle("pixels", pixels);
  $("smooth").setAttribute("aria-pressed", String(!pixels));
  $("pixels").setAttribute("aria-pressed", String(pixels));
}

// Classes to choose from.

function makeChoices() {
  const many = task.classes.length > 9;
  $("choices").replaceChildren(...task.classes.map(({ name, definition }) => {
    const button = make("button", definition ? "choice" : "choice plain", make("kbd"), make("span", "name", plain(name)));
    button.type = "button";
    button.dataset.label = name;
    button.querySelector("kbd").setAttribute("aria-hidden", "true");
    if (definition) button.append(make("span", "definition", definition));
    button.onclick = () => answer(name);
    return make("li", "", button);
  }));
  $("choices").classList.toggle("many", many);
  $("choices").classList.toggle("two", task.classes.length > 6);
  document.querySelector(".dock").classList.toggle("few", task.classes.length <= 6);
  $("type").hidden = $("help-type").hidden = !many;
  $("definitions").replaceChildren(...task.classes.flatMap(({ name, definition }) => definition
    ? [make("dt", "", plain(name)), make("dd", "", definition)] : []));
  $("meanings").hidden = !$("definitions").childElementCount;
  narrow("");
}

function matching() {
  return [...$("choices").querySelectorAll("li:not([hidden]) .choice")];
}

function narrow(text) {
  const wanted = plain(text.trim().toLowerCase());
  if ($("wanted").value !== text) $("wanted").value = text;
  // Names that begin so come first, then those with it anywhere, then definitions with a word that begins so.
  const rank = ({ name, definition }) => {
    const words = plain(name).toLowerCase();
    if (words.startsWith(wanted)) return 0;
    if (words.includes(wanted)) return 1;
    return definition.toLowerCase().split(/\W+/).some((word) => word.startsWith(wanted)) ? 2 : 3;
  };
  const order = task.classes.map((spec) => rank(spec));
  for (const entry of $("choices").children) {
    const n = task.classes.findIndex(({ name }) => name === entry.firstChild.dataset.label);
    entry.hidden = order[n] === 3;
    entry.dataset.place = order[n] * 1e6 + n;
  }
  $("choices").append(...[...$("choices").children].sort((a, b) => a.dataset.place - b.dataset.place));
  for (const button of $("choices").querySelectorAll(".choice")) {
    button.querySelector("kbd").textContent = "";
    button.removeAttribute("aria-keyshortcuts");
  }
  matching().slice(0, 9).forEach((button, n) => {
    button.querySelector("kbd").textContent = n + 1;
    button.setAttribute("aria-keyshortcuts", n + 1);
  });
  $("matches").textContent = wanted ? plural(matching().length, "class", "classes") : "";
}

function ready() {
  return !busy && !paused && seen && state.item && performance.now() - shownAt > SLIP_MS;
}

function disable() {
  for (const button of [...$("choices").querySelectorAll("button"), $("skip"), $("undo"), $("toast-undo")]) {
    if (button !== document.activeElement) button.disabled = true;  // or the focus would be lost
    button.setAttribute("aria-disabled", "true");
  }
}

function enable() {
  if (busy) return;
  $("undo-text").textContent = state.last ? `Undo ${plain(state.last.label)}` : "Undo";
  for (const button of [...$("choices").querySelectorAll("button"), $("skip"), $("undo"), $("toast-undo")]) {
    const may = button.id === "undo" || button.id === "toast-undo" ? Boolean(state.last)
      : button.id === "skip" ? Boolean(state.item) : seen;
    button.disabled = !may;
    button.setAttribute("aria-disabled", String(!may));
    button.classList.remove("chosen");
  }
}

function answer(label) {
  if (!ready()) return;
  const { key } = state.item;
  toast();
  mark(label);
  act(() => ask("answer", { key, label, reason }), (said) => {
    const kept = said.last?.key === key;
    show(said, kept ? `Labelled ${plain(label)}.` : "");
    if (kept) toast(plain(label));
  });
}

function mark(label) {
  for (const button of $("choices").querySelectorAll(".choice")) button.classList.toggle("chosen", button.dataset.label === label);
}

function skip() {
  if (busy || paused || !state.item || performance.now() - shownAt <= SLIP_MS) return;
  const { key } = state.item;
  toast();
  act(() => ask("skip", { key, reason }), (said) => {
    if (said.item?.key === key) {
      state.item = null;  // it is all there is: show it anew
      seen = false;
    }
    show(said, "Skipped.");
  });
}

function undo() {
  if (busy || !state.last) return;
  const { key, label } = state.last;
  toast();
  act(() => ask("undo", { key, reason }), (said) => {
    seen = false;
    state.item = null;
    show(said, `Took back ${plain(label)}.`, true);
  });
}

function toast(text = "") {
  clearTimeout(toastTimer);
  if (!text && $("toast").contains(document.activeElement) && !$("item").hidden) $("why").focus({ preventScroll: true });
  $("toast").hidden = true;
  if (!text) return;
  $("toast-text").textContent = text;
  void $("toast").offsetWidth;  // or it would not rise again
  $("toast").hidden = false;
  const away = () => {
    if ($("toast").matches(":hover, :focus-within")) toastTimer = setTimeout(away, 1000);
    else $("toast").hidden = true;
  };
  toastTimer = setTimeout(away, TOAST_MS);
}

// How it goes, and what to see of it.

function title() {
  const n = state.progress?.waiting || 0;
  return `${n ? `(${n}) ` : ""}Review${task ? ` · ${plain(task.task)}` : ""}`;
}

function showProgress() {
  const { mine, all, waiting, held, oldest_s: oldest, agreement, disputed } = state.progress;
  document.title = title();
  $("mine").textContent = mine;
  $("all").textContent = all;
  $("waiting").replaceChildren(String(waiting), ...(held ? [make("small", "", ` ${held} with others`)] : []));
  $("oldest").textContent = oldest === null ? "–" : lasting(oldest);
  $("agreement").replaceChildren(...(agreement ? [
    percent(agreement.share),
    make("small", "", ` of ${agreement.n}, ${percent(agreement.low)} to ${percent(agreement.high)}`
      + (agreement.alpha === null ? "" : `; alpha ${agreement.alpha.toFixed(2)}`)
      + (disputed ? `; ${disputed} to settle` : "")),
  ] : [make("small", "", "no item has two answers yet")]));
  showReasons();
}

function showReasons() {
  const counts = state.progress.reasons;
  const total = Object.values(counts).reduce((sum, n) => sum + n, 0);
  const rows = [["", "Everything", total], ...Object.keys(REASONS)
    .filter((name) => counts[name] || name === reason).map((name) => [name, REASONS[name][0], counts[name] || 0])];
  const made = [...$("reasons").querySelectorAll("input")].map((input) => input.value);
  if (JSON.stringify(made) === JSON.stringify(rows.map(([name]) => name))) {  // it may be open, with the focus in it
    rows.forEach(([, , n], place) => { $("reasons").children[place].lastChild.textContent = n; });
  } else {
    const had = $("filter").contains(document.activeElement);
    $("reasons").replaceChildren(...rows.map(([name, words, n]) => {
      const input = make("input");
      Object.assign(input, { type: "radio", name: "reason", value: name, checked: name === reason });
      return make("label", "", input, make("span", "", words), make("span", "", String(n)));
    }));
    if (had) $("reasons").querySelector(":checked")?.focus();
  }
  $("filter-now").textContent = reason ? REASONS[reason][0] : innerWidth < 420 ? "Filter" : "Everything";
}

function setReason(name) {
  reason = name;
  for (const input of $("reasons").querySelectorAll("input")) input.checked = input.value === name;
  if (state.progress) showReasons();
}

function openFilter(open) {
  $("filter").hidden = !open;
  $("filter-button").setAttribute("aria-expanded", String(open));
  if (open) $("reasons").querySelector(":checked")?.focus();
}

// Hands and keys.

function pressed(event) {
  touch();
  if (event.key === "Escape" && !$("filter").hidden) {
    openFilter(false);
    $("filter-button").focus();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.isComposing) return;
  if (!task || document.querySelector("dialog[open]") || !$("filter").hidden) return;
  const many = task.classes.length > 9, typing = event.target === $("wanted");
  if (typing) {
    if (event.key === "Escape") {
      narrow("");
      $("why").focus();
    } else if (event.key === "Enter" && $("wanted").value.trim() && matching().length) {
      event.preventDefault();
      answer(matching()[0].dataset.label);
    }
    if (!/^[1-9]$/.test(event.key)) return;
  }
  if (!shortcuts || event.target.matches("input:not(#wanted)")) return;
  if (/^[1-9]$/.test(event.key)) {
    const chosen = matching()[event.key - 1];
    if (chosen) {
      event.preventDefault();
      answer(chosen.dataset.label);
    }
  } else if (event.key === "u" || event.key === "U") undo();
  else if (event.key === "s" || event.key === "S") skip();
  else if (event.key === "?") $("help").showModal();
  else if (many && !$("item").hidden && (event.key === "/" || /^\p{L}$/u.test(event.key))) {
    event.preventDefault();
    $("wanted").focus();
    narrow(event.key === "/" ? "" : event.key);
  }
}

document.addEventListener("keydown", pressed);
for (const kind of ["pointerdown", "pointermove", "wheel", "touchstart"]) document.addEventListener(kind, touch, { passive: true });
document.addEventListener("visibilitychange", () => { if (!document.hidden && task && !state.item && !paused && !busy) fetchNext(); });
addEventListener("online", () => retry?.());
document.addEventListener("pointerdown", (event) => { if (!$("filter").hidden && !event.target.closest(".filter")) openFilter(false); });
document.addEventListener("focusin", (event) => { if (!$("filter").hidden && !event.target.closest(".filter")) openFilter(false); });
$("filter-button").onclick = () => openFilter($("filter").hidden);
$("filter").onsubmit = (event) => event.preventDefault();
// Arrows walk through the radio buttons, and each stop would take another item: it is taken when the choice stands.
let settling = 0;
$("reasons").addEventListener("change", (event) => {
  reason = event.target.value;
  showReasons();
  clearTimeout(settling);
  settling = setTimeout(() => {
    if (busy) return;
    state.item = state.item && (!reason || state.item.reason === reason) ? state.item : null;
    fetchNext();
  }, 350);
});
$("reasons").addEventListener("click", (event) => {
  if (event.detail && event.target.matches("input")) {  // by a finger or a mouse, not by an arrow key
    openFilter(false);
    $("filter-button").focus();
  }
});
$("reasons").addEventListener("keydown", (event) => {
  if (event.key === "Enter") {
    openFilter(false);
    $("filter-button").focus();
  }
});
$("sign-in").onsubmit = (event) => {
  event.preventDefault();
  secret = $("secret").value.trim();
  // A header holds nothing else, and the browser would say so in words of its own.
  if (!/^[\x21-\x7e]+$/.test(secret)) $("sign-in-error").textContent = "Letters, digits and signs without spaces are wanted.";
  else begin();
};
$("sign-out").onclick = () => signIn();
$("undo").onclick = $("toast-undo").onclick = $("nothing-undo").onclick = undo;
$("skip").onclick = skip;
$("smooth").onclick = () => look(false);
$("pixels").onclick = () => look(true);
$("enlarge").onclick = $("picture").onclick = () => { if (seen) $("full").showModal(); };
$("help-button").onclick = () => $("help").showModal();
$("shortcuts").onchange = (event) => { shortcuts = event.target.checked; };
$("wanted").oninput = (event) => narrow(event.target.value.replace(/[1-9]/g, ""));

// The tab's picture, as a blob: the page may load nothing else.
const icon = document.createElement("link");
icon.rel = "icon";
icon.href = URL.createObjectURL(new Blob(['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="9" fill="#0d655c"/><path d="m9 17 5 5 9-12" fill="none" stroke="#fff" stroke-width="3.4" stroke-linecap="round" stroke-linejoin="round"/></svg>'], { type: "image/svg+xml" }));
document.head.append(icon);

act(async () => {
  const response = await fetch("review/hello", { cache: "no-store" });
  if (!response.ok) throw new Refused(response.status, await response.json().catch(() => null));
  return response.json();
}, (said) => {
  access = said;
  $("rehearsal").hidden = !said.rehearsal;
  secret = sessionStorage.getItem(KEPT);
  if (secret) begin();
  else signIn();
});
