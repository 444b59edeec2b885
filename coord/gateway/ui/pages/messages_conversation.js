/** A conversation as a sequence diagram, and beside it the same as a list. */

import { get } from "../api.js";
import { fill, h, setText } from "../dom.js";
import { count, time } from "../format.js";
import { go, hrefOf } from "../router.js";
import { follow } from "./follow.js";
import { kindOf, LOST, statusOf } from "./messages_one.js";

/** Pixels: a column of an agent, at least and at most; a row of a message, the head, and the edge. */
const COLUMN = [132, 230];
const ROW = 46;
const HEAD = 40;
const EDGE = 84;
/** Pixels of a character of an id, at most. */
const LETTER = 7.4;
const SVG = "http://www.w3.org/2000/svg";

/** Return an element of SVG. */
function s(name, attributes, ...children) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

const cut = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
const receiverOf = (one) => (one.recipient_count === null ? one.receiver_id : count(one.recipient_count, "agent"));

export class ConversationView {
  constructor(id) {
    this.id = id;
    this.isOver = false;
    this.text = h("span", { class: "muted" });
    this.diagram = h("div", { class: "diagram", tabindex: "0", role: "region", "aria-label": "Diagram" });
    this.list = h("ol", { class: "talk" });
    this.problem = h("div", { role: "alert" });
    this.main = h("div", { class: "conversation-main" }, this.diagram, this.list);
    this.element = h(
      "section",
      { class: "panel conversation", "aria-label": `Conversation ${id}` },
      h(
        "header",
        null,
        h("h2", { class: "mono" }, id),
        this.text,
        h("a", { href: hrefOf("messages") }, "All messages"),
      ),
      this.problem,
      this.main,
    );
    this.stop = follow(["message", "request"], () => this.read());
  }

  end() {
    this.isOver = true;
    this.stop();
  }

  async read() {
    try {
      const found = await get(`/messages/conversations/${encodeURIComponent(this.id)}`);
      if (this.isOver) return;
      this.main.hidden = false;
      fill(this.problem);
      this.draw(found);
    } catch (error) {
      if (this.isOver) return;
      this.main.hidden = error.status === 404;
      const text =
        error.status === 404 ? "There is no such conversation, or its messages are not kept any more." : error.message;
      fill(this.problem, h("p", { class: "failure body" }, text));
    }
  }

  draw({ messages, count: all }) {
    const drawn = JSON.stringify(messages);
    if (drawn === this.drawn) return;
    this.drawn = drawn;
    const names = [...new Set(messages.flatMap((one) => [one.sender_id, receiverOf(one)]))];
    const missing = all - messages.length;
    const kept = missing ? `; ${missing} are not kept any more` : "";
    setText(this.text, `${count(all, "message")} between ${count(names.length, "participant")}${kept}`);
    const room = (this.diagram.clientWidth - EDGE) / names.length;
    const column = Math.floor(Math.max(COLUMN[0], Math.min(COLUMN[1], room)));
    const width = EDGE + names.length * column;
    const x = (name) => EDGE + (names.indexOf(name) + 0.5) * column;
    const height = messages.length * ROW + 24;
    const label = `Sequence diagram of ${count(messages.length, "message")}; the list has the same`;
    fill(
      this.diagram,
      s(
        "svg",
        { class: "heads", width, height: HEAD, "aria-hidden": "true" },
        ...names.map((name) => head(name, x(name), column)),
      ),
      s(
        "svg",
        { class: "lines", width, height, role: "img", "aria-label": label },
        ...names.map((name) => s("line", { class: "life", x1: x(name), x2: x(name), y1: 0, y2: height })),
        ...messages.map((one, at) => arrow(one, at, x)),
      ),
    );
    fill(
      this.list,
      messages.map((one, at) =>
        h(
          "li",
          { "data-at": at, onpointerenter: () => this.mark(at), onpointerleave: () => this.mark(null) },
          h(
            "span",
            { class: "way" },
            h("a", { href: hrefOf("messages", ["message", one.message_id]) }, `${one.sender_id} → ${receiverOf(one)}`),
          ),
          h("span", { class: "muted number" }, time(one.sent_at)),
          h("span", null, kindOf(one)),
          h("span", null, statusOf(one)),
          one.reason && h("span", { class: "failure why" }, one.reason),
        ),
      ),
    );
  }

  /** Mark a message in both. */
  mark(at) {
    for (const one of this.element.querySelectorAll(".marked")) one.classList.remove("marked");
    if (at === null) return;
    for (const one of this.element.querySelectorAll(`[data-at="${at}"]`)) one.classList.add("marked");
  }
}

/** Return the arrow of a message: dashed for a reply, with a cross for one that was lost. */
function arrow(one, at, x) {
  const y = at * ROW + 32;
  const from = x(one.sender_id);
  const to = x(receiverOf(one));
  const isLost = LOST.includes(one.status);
  const way = Math.sign(to - from);
  const tip = to - way * 3;
  const path = way === 0 ? `M${from} ${y - 10}h34v14h-30` : `M${from} ${y}H${tip}`;
  const end = way === 0 ? [from + 3, y + 4, -1] : [tip, y, way];
  const [ex, ey, side] = end;
  const point = isLost
    ? `M${ex - 5} ${ey - 5}l10 10M${ex + 5} ${ey - 5}l-10 10`
    : `M${ex - side * 8} ${ey - 4.5}L${ex} ${ey}L${ex - side * 8} ${ey + 4.5}`;
  const room = Math.abs(to - from) / 6.2;
  const kind = kindOf(one);
  const texts =
    way === 0
      ? s("text", { x: from + 42, y: y + 1 }, cut(kind, 17))
      : s("text", { x: (from + to) / 2, y: y - 6, "text-anchor": "middle" }, cut(kind, Math.floor(room)));
  return s(
    "g",
    { class: `arrow ${one.reply_to ? "reply" : ""} ${isLost ? "lost" : ""}`, "data-at": at },
    s("title", {}, `${one.sender_id} → ${receiverOf(one)}: ${kind}`),
    s("rect", { x: 0, y: y - 26, width: "100%", height: ROW }),
    s("text", { class: "time", x: 8, y: y + 4 }, time(one.sent_at)),
    s("circle", { cx: from, cy: way === 0 ? y - 10 : y, r: 3.2 }),
    s("path", { class: "line", d: path }),
    s("path", { class: "tip", d: point }),
    texts,
  );
}

function head(name, x, column) {
  return s(
    "g",
    { class: "head" },
    s("title", {}, name),
    s("rect", { x: x - column / 2 + 6, y: 6, width: column - 12, height: 26, rx: 6 }),
    s("text", { x, y: 23, "text-anchor": "middle" }, cut(name, Math.floor((column - 20) / LETTER))),
  );
}
