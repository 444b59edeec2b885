/**
 * The Messages page: recent messages, those of one agent, dead letters, one message, and one conversation.
 *
 * `#/messages?agent=a1`, `#/messages/dead`, `#/messages/message/ID`, `#/messages/conversation/ID`. Payloads are not
 * shown, but on request.
 */

import { get } from "../api.js";
import { emptyState, fill, focusOn, h, idText, setText } from "../dom.js";
import { feed } from "../feed.js";
import { ago, count, number } from "../format.js";
import { go, hrefOf, setQuery } from "../router.js";
import { setPageKeys } from "../shortcuts.js";
import { store } from "../store.js";
import { follow, repeat } from "./follow.js";
import { LiveTable, Problem } from "./live_table.js";
import { ConversationView } from "./messages_conversation.js";
import { DeadLetters } from "./messages_dead.js";
import { agentLink, kindOf, MessagePanel, statusOf } from "./messages_one.js";

export const title = "Messages";

/** Milliseconds between two reads of the number of dead letters. */
const COUNT_MS = 5_000;
const ROWS = 100;
/** With more older messages than this the list begins again with the first page. */
const MOST_OLDER = 1_000;

let page = null;

export function mount(root, where) {
  page = new MessagesPage(root, where);
}

export function unmount() {
  page?.end();
  page = null;
}

export function update(where) {
  page?.show(where);
}

class MessagesPage {
  constructor(root, where) {
    this.isOver = false;
    this.tabs = [
      ["Recent", []],
      ["Dead letters", ["dead"]],
    ].map(([label, path]) => h("a", { href: hrefOf("messages", path), "data-path": path.join() }, label));
    this.deadCount = h("span", { class: "chip", hidden: true });
    this.tabs[1].append(this.deadCount);
    this.content = h("div", { class: "messages-content" });
    root.append(
      h(
        "div",
        { class: "messages" },
        h(
          "div",
          { class: "messages-top" },
          h("h1", null, "Messages"),
          h("nav", { class: "subnav", "aria-label": "Messages" }, this.tabs),
        ),
        this.content,
      ),
    );
    setPageKeys([{ key: "Escape", label: "Close the message or the conversation", run: () => this.close() }]);
    this.stop = repeat(() => this.countDead(), COUNT_MS);
    this.show(where);
  }

  end() {
    this.isOver = true;
    this.stop();
    this.list?.end();
    this.panel?.end();
  }

  async countDead() {
    try {
      const { total } = await get("/messages/dead", { limit: 1 });
      setText(this.deadCount, number(total));
      this.deadCount.hidden = total === 0;
    } catch {
      // the list shows why
    }
  }

  close() {
    if (this.where.path.length > 1) go("messages", this.panelOf === "dead" ? ["dead"] : [], { agent: this.agent });
  }

  show(where) {
    this.where = where;
    const [kind, id] = where.path;
    this.agent = where.query.get("agent") ?? "";
    const view = kind === "conversation" ? `conversation ${id}` : kind === "dead" ? "dead" : "recent";
    // A message opens beside the list from which it was opened.
    const isBeside = kind === "message" && this.view && !this.view.startsWith("conversation");
    if (!isBeside && this.view !== view) {
      this.list?.end();
      this.view = view;
      this.panelOf = view;
      this.list =
        kind === "conversation"
          ? new ConversationView(id)
          : kind === "dead"
            ? new DeadLetters(() => this.countDead())
            : new Recent();
      fill(this.content, this.list.element);
    }
    this.list.filter?.(this.agent);
    for (const tab of this.tabs) {
      if ((this.view === "dead") === (tab.dataset.path === "dead")) tab.setAttribute("aria-current", "true");
      else tab.removeAttribute("aria-current");
    }
    const opened = kind === "message" ? id : null;
    const before = this.panel;
    if ((before?.id ?? null) === opened) return;
    const hadFocus = before?.element.contains(document.activeElement);
    before?.end();
    this.panel = null;
    this.content.classList.toggle("with-panel", opened !== null);
    if (opened === null) {
      const link = this.content.querySelector(`tr[data-key="${CSS.escape(before.id)}"] a`);
      if (hadFocus) focusOn(link ?? this.content.firstElementChild);
      return;
    }
    this.panel = new MessagePanel(opened, () => this.close());
    this.content.prepend(this.panel.element);
    this.panel.title.focus();
  }
}

/** The recent messages, of all agents or of one. */
class Recent {
  constructor() {
    this.isOver = false;
    this.agent = null;
    this.older = [];
    this.newest = [];
    this.isRead = false;
    this.isReadingMore = false;
    this.problem = new Problem();
    this.table = new LiveTable(
      "Messages",
      [
        {
          label: "Message",
          class: "first",
          text: (row) => `${row.message_id} ${this.agent}`,
          node: (row) =>
            h(
              "a",
              { class: "mono id", href: hrefOf("messages", ["message", row.message_id], { agent: this.agent }) },
              idText(row.message_id),
            ),
        },
        {
          label: "From",
          text: ({ sender_id: id }) => id,
          node: ({ sender_id: id }) => agentLink(id),
        },
        {
          label: "To",
          text: (row) => `${row.receiver_id} ${row.recipient_count}`,
          node: (row) =>
            row.recipient_count === null ? agentLink(row.receiver_id) : count(row.recipient_count, "agent"),
        },
        { label: "Type", text: kindOf },
        { label: "Priority", class: "extra", text: ({ priority }) => priority },
        { label: "Status", text: ({ status, code }) => `${status} ${code}`, node: statusOf },
        {
          label: "Conversation",
          text: (row) => row.conversation ?? row.correlation_id ?? "–",
          node: (row) => {
            const id = row.conversation ?? row.correlation_id;
            return id ? h("a", { class: "mono", href: hrefOf("messages", ["conversation", id]) }, idText(id)) : "–";
          },
        },
        { label: "Sent", class: "number", text: ({ sent_at: at }) => ago(at, feed.now()) },
      ],
      ({ message_id: id }) => id,
    );
    this.input = h("input", {
      type: "search",
      list: "message-agents",
      placeholder: "All agents",
      autocomplete: "off",
      spellcheck: "false",
      "data-querybar": true,
      onchange: () => setTimeout(() => this.choose(this.input.value.trim())),
      onsearch: () => this.choose(this.input.value.trim()),
    });
    this.agents = h("datalist", { id: "message-agents" });
    this.text = h("span", { class: "muted" });
    this.note = h("div");
    this.more = h("button", { type: "button", class: "secondary", onclick: () => this.readMore() }, "Older messages");
    this.element = h(
      "section",
      { class: "panel messages-list", "aria-label": "Recent messages" },
      h("header", null, h("label", { class: "inline-field" }, "Agent", this.input), this.agents, this.text),
      this.problem.element,
      this.table.element,
      this.note,
      h("footer", null, this.more),
    );
    this.endAgents = store.subscribe(() => this.drawAgents());
    this.drawAgents();
  }

  end() {
    this.isOver = true;
    this.stop?.();
    this.endAgents();
  }

  drawAgents() {
    if (this.known === store.agents.size) return;
    this.known = store.agents.size;
    fill(
      this.agents,
      [...store.agents.keys()].sort().map((id) => h("option", { value: id })),
    );
  }

  choose(agent) {
    setQuery({ agent });
    this.filter(agent);
  }

  /** Show the messages of an agent; empty: all. */
  filter(agent) {
    if (agent === this.agent) return;
    this.agent = agent;
    this.input.value = agent;
    this.older = this.newest = [];
    this.cursor = undefined;
    this.isRead = false;
    this.stop?.();
    this.stop = follow(["message", "request"], () => this.read(), { draw: () => this.draw() });
  }

  async list(cursor) {
    const { agent } = this;
    const found = await get("/messages/history", { agent_id: agent, within: ROWS, limit: ROWS, cursor });
    return this.isOver || agent !== this.agent ? null : found;
  }

  async read() {
    try {
      const found = await this.list();
      if (!found || this.isReadingMore) return;
      const known = new Set(found.messages.map(({ message_id: id }) => id));
      // Those that the new ones have pushed off the first page are kept once more are shown, unless there is a hole
      // between the two.
      const isWhole = this.newest.some((one) => known.has(one.message_id)) && this.older.length <= MOST_OLDER;
      if (this.older.length && isWhole)
        this.older = [...this.newest.filter((one) => !known.has(one.message_id)), ...this.older];
      else {
        this.older = [];
        this.cursor = found.next;
      }
      this.newest = found.messages;
      this.isRead = true;
      this.problem.set("");
      this.draw();
    } catch (error) {
      if (!this.isOver) this.fail(error.message);
    }
  }

  async readMore() {
    if (this.isReadingMore) return;
    this.isReadingMore = true; // a read of the first page would move the cursor meanwhile
    try {
      const found = await this.list(this.cursor);
      if (!found) return;
      this.older = [...this.older, ...found.messages];
      this.cursor = found.next;
      this.problem.set("");
      this.draw();
    } catch (error) {
      if (!this.isOver) this.fail(error.message);
    } finally {
      this.isReadingMore = false;
    }
  }

  fail(text) {
    this.problem.set(text);
    // What is shown is of another agent.
    if (!this.isRead) this.table.element.hidden = this.note.hidden = this.more.hidden = true;
  }

  draw() {
    if (!this.isRead) return;
    const rows = new Map([...this.newest, ...this.older].map((row) => [row.message_id, row]));
    this.table.set([...rows.values()].sort((a, b) => b.sent_at.localeCompare(a.sent_at)));
    this.table.element.hidden = rows.size === 0;
    setText(this.text, `${count(rows.size, "message")}${this.cursor ? ", and older ones" : ""}`);
    this.more.hidden = !this.cursor || this.older.length >= MOST_OLDER;
    this.note.hidden = false;
    const wanted = rows.size ? "" : this.agent || "all";
    if (this.note.getAttribute("data-for") === wanted) return;
    this.note.setAttribute("data-for", wanted);
    const send = 'coord messages send AGENT \'{"text": "hello"}\'';
    if (rows.size) fill(this.note);
    else if (this.agent) {
      const all = h(
        "button",
        { type: "button", class: "secondary", onclick: () => this.choose("") },
        "Show all agents",
      );
      fill(
        this.note,
        emptyState(`No message of ${this.agent}`, ["It has sent and received none lately.", h("br"), all]),
      );
    } else
      fill(this.note, emptyState("No message yet", "Agents and clients send messages. Send one to an agent:", send));
  }
}
