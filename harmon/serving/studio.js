"use strict";
const by = (id) => document.getElementById(id);
const model = by("drawing").dataset.model;
const SIDE = 1024; // pixels of the longer side of a picture that is sent

// Streams: each event of the server's answer to `body`, parsed, as it comes.
async function* events(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  if (by("key").value) headers.Authorization = "Bearer " + by("key").value;
  const answer = await fetch(path, { method: "POST", headers, signal, body: JSON.stringify({ model, ...body }) });
  if (!answer.ok) throw new Error(await reason(answer));
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const line = part.split("\n").find((one) => one.startsWith("data: "));
      if (!line || line === "data: [DONE]") continue;
      const event = JSON.parse(line.slice(6));
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

async function reason(answer) {
  try {
    return (await answer.json()).error.message;
  } catch {
    return "The server answered " + answer.status + ".";
  }
}

// Drawing.
let stopper = null;
let drawn = null;

function tell(text, wrong) {
  by("told").textContent = text;
  by("told").className = wrong ? "error" : "";
}

by("drawing").addEventListener("submit", async (submitted) => {
  submitted.preventDefault();
  stopper = new AbortController();
  by("start").disabled = true;
  by("stop").hidden = false;
  by("take").disabled = true;
  drawn = null;
  by("progress").value = 0;
  by("canvas").removeAttribute("src");
  tell("Waiting for the first tokens.");
  const body = { prompt: by("prompt").value, size: by("size").value, stream: true };
  body.partial_images = Math.min(Number(by("drawing").dataset.frames), 32);
  for (const name of ["steps", "guidance", "seed"]) if (by(name).value) body[name] = Number(by(name).value);
  try {
    for await (const event of events("v1/images/generations", body, stopper.signal)) show(event);
    if (!drawn) tell("The server ended before the picture was whole.", true);
  } catch (error) {
    tell(error.name === "AbortError" ? "Stopped." : error.message, error.name !== "AbortError");
  }
  by("start").disabled = false;
  by("stop").hidden = true;
});

function show(event) {
  const picture = "data:image/png;base64," + event.b64_json;
  by("canvas").src = picture;
  if (event.type === "image_generation.completed") {
    drawn = picture;
    by("canvas").alt = by("prompt").value;
    by("progress").value = 1;
    by("take").disabled = false;
    tell("Drawn with seed " + event.seed + ".");
  } else {
    by("progress").value = event.steps_done / event.steps;
    tell("AR step " + event.steps_done + " of " + event.steps + ".");
  }
}

by("stop").addEventListener("click", () => stopper.abort());

// Asking.
let shown = null;
let turns = [];

function begin(picture) {
  shown = picture;
  turns = [];
  by("said").replaceChildren();
  by("shown").hidden = !picture;
  if (picture) by("shown").src = picture;
}

by("take").addEventListener("click", () => begin(drawn));
by("anew").addEventListener("click", () => {
  by("file").value = "";
  begin(null);
});

by("file").addEventListener("change", async () => {
  const [file] = by("file").files;
  if (!file) return;
  try {
    begin(await reduced(file));
  } catch {
    begin(null);
    add("assistant", "That file is no picture that this browser reads.").className = "assistant error";
  }
});

// The picture upright, at most SIDE pixels long: no more is looked at, and less is sent.
async function reduced(file) {
  const bitmap = await createImageBitmap(file);
  const scale = Math.min(1, SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/png");
}

function add(role, text) {
  const line = document.createElement("li");
  line.className = role;
  line.textContent = text; // never as HTML: models repeat what they are told
  by("said").append(line);
  return line;
}

by("asking").addEventListener("submit", async (submitted) => {
  submitted.preventDefault();
  const question = by("question").value;
  let content = question;
  if (!turns.length && shown) {
    content = [{ type: "image_url", image_url: { url: shown } }, { type: "text", text: question }];
  }
  const before = turns;
  const messages = [...turns, { role: "user", content }];
  add("user", question);
  const line = add("assistant", "");
  line.classList.add("waiting");
  by("question").value = "";
  by("send").disabled = true;
  try {
    let said = "";
    for await (const event of events("v1/chat/completions", { messages, stream: true })) {
      said += event.choices[0]?.delta.content ?? "";
      line.textContent = said;
    }
    if (turns === before) turns = [...messages, { role: "assistant", content: said }];
    if (!said) line.textContent = "(no answer)";
    line.className = "assistant";
  } catch (error) {
    line.textContent = error.message;
    line.className = "assistant error";
  }
  by("send").disabled = false;
  by("question").focus();
});
