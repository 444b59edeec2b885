/** One message: its record, what became of it for each recipient, and what an operator can do if it is dead. */

import { get } from "../api.js";
import { fill, h, icon, idText } from "../dom.js";
import { count, number, time } from "../format.js";
import { hrefOf, link } from "../router.js";
import { session } from "../session.js";
import { follow } from "./follow.js";
import { state } from "./live_table.js";
import { letterActions } from "./messages_dead.js";

const RECIPIENTS = 50;
export const LOST = ["dead", "expired"];

/** A link to the messages of an agent. */
export const agentLink = (id) => h("a", { href: hrefOf("messages", [], { agent: id }) }, idText(id));

/** The status of a message, or of its copy for a recipient. */
export const statusOf = ({ status, code }) => [
  state(status),
  code && status !== "expired" && h("span", { class: "muted code" }, ` ${code.replaceAll("_", " ")}`),
];

const REQUESTS = { open: "waits for the reply", answered: "answered", timed_out: "timed out", refused: "refused" };

/** What a message is: its type, and its role in the conversation. */
export function kindOf({ message_type: type, request, reply_to: reply, failed, late }) {
  const role = request ? `request, ${REQUESTS[request]}` : reply && (failed ? "failed reply" : "reply");
  return [type.replaceAll("_", " "), role, late && "late"].filter(Boolean).join(" · ");
}

/** `object with 2 keys, 71 bytes`. */
export function sizeOf(payload) {
  if (payload === null || payload === undefined) return "none";
  const size = `${number(new TextEncoder().encode(JSON.stringify(payload)).length)} bytes`;
  if (Array.isArray(payload)) return `list of ${count(payload.length, "item")}, ${size}`;
  if (typeof payload === "object") return `object with ${count(Object.keys(payload).length, "key")}, ${size}`;
  return `${typeof payload}, ${size}`;
}

export class MessagePanel {
  /**
   * @param {string} id
   * @param {() => void} close
   */
  constructor(id, close) {
    this.id = id;
    this.isOver = false;
    this.isShown = false;
    this.limit = RECIPIENTS;
    this.title = h("h2", { class: "mono", tabindex: "-1", id: "message-title" }, id);
    this.body = h("div", { class: "body" });
    this.element = h(
      "aside",
      { class: "panel message", "aria-labelledby": "message-title" },
      h(
        "header",
        null,
        this.title,
        h(
          "button",
          { class: "quiet icon-only", type: "button", "aria-label": "Close the message", onclick: close },
          icon("close"),
        ),
      ),
      this.body,
    );
    this.stop = follow(["message", "request", "dead"], () => this.read(), {
      wants: (batch) => batch.some(({ data }) => [data.message_id, data.id, data.broadcast_id].includes(id)),
    });
  }

  end() {
    this.isOver = true;
    this.stop();
    this.element.remove();
  }

  async read() {
    try {
      const found = await get(`/messages/${encodeURIComponent(this.id)}`, { limit: this.limit });
      if (!this.isOver) this.draw(found);
    } catch (error) {
      if (this.isOver) return;
      this.drawn = "";
      const text = error.status === 404 ? "It does not exist, or not any more." : error.message;
      fill(this.body, h("p", { class: "failure", role: "alert" }, text));
    }
  }

  draw({ message, recipients, next }) {
    const drawn = JSON.stringify([message, recipients, next, session.refusal("operator"), this.isShown]);
    if (drawn === this.drawn) return;
    this.drawn = drawn;
    const talk = message.conversation ?? message.correlation_id;
    const messageLink = (id) => h("a", { class: "mono", href: hrefOf("messages", ["message", id]) }, id);
    const isBroadcast = message.recipient_count !== null;
    const rows = [
      ["Status", statusOf({ ...message, code: "" })],
      ["Reason", message.reason && h("span", { class: "failure" }, message.reason)],
      ["From", link(message.sender_id, "fleet", [message.sender_id])],
      [
        "To",
        isBroadcast
          ? count(message.recipient_count, "agent")
          : link(message.receiver_id, "fleet", [message.receiver_id]),
      ],
      ["Type", kindOf(message)],
      ["Protocol", message.protocol !== "direct" && message.protocol.replaceAll("_", " ")],
      ["Priority", message.priority],
      ["Sent", time(message.sent_at)],
      ["Expires", time(message.expires_at)],
      ["Reply by", message.reply_by && time(message.reply_by)],
      ["Replies to", message.reply_to && messageLink(message.reply_to)],
      ["Conversation", talk && h("a", { class: "mono", href: hrefOf("messages", ["conversation", talk]) }, talk)],
      ["Answers before", message.hops > 0 && number(message.hops)],
      ["Payload", [sizeOf(message.payload), this.payloadButton(message.payload)]],
    ];
    fill(
      this.body,
      h(
        "dl",
        { class: "facts" },
        rows.filter(([, value]) => value).map(([name, value]) => [h("dt", null, name), h("dd", null, value)]),
      ),
      this.isShown && h("pre", { tabindex: "0", "aria-label": "Payload" }, JSON.stringify(message.payload, null, 2)),
      LOST.includes(message.status) && letterActions(message.message_id, () => this.read()),
      h("h3", null, isBroadcast ? `Recipients (${number(message.recipient_count)})` : "Recipient"),
      h(
        "ul",
        { class: "recipients" },
        recipients.map((one) =>
          h(
            "li",
            null,
            link(one.agent_id, "fleet", [one.agent_id]),
            h("span", null, statusOf({ status: one.status, code: one.code ?? "" })),
            one.dead_letter && messageLink(one.dead_letter),
          ),
        ),
      ),
      next !== null &&
        h(
          "button",
          {
            type: "button",
            class: "secondary",
            onclick: () => {
              this.limit = Math.min(1_000, this.limit * 4);
              this.read();
            },
          },
          "More recipients",
        ),
    );
  }

  payloadButton(payload) {
    if (payload === null || payload === undefined) return null;
    const show = () => {
      this.isShown = !this.isShown;
      this.read();
    };
    return h("button", { type: "button", class: "quiet", onclick: show }, this.isShown ? "Hide" : "Show");
  }
}
