/** The query of the Fleet page, which runs in the browser: `state:active region:eu* -tag:gpu load:>=0.8`. */

/** Name -> what an agent has in a field: text, a number, or a list of texts. */
const FIELDS = {
  id: { help: "id of the agent", get: (agent) => agent.agent_id, example: "id:gpu-*" },
  state: {
    help: "status",
    get: (agent) => agent.status,
    values: ["active", "busy", "draining", "maintenance", "error", "stale"],
  },
  type: { help: "type of the agent", get: (agent) => agent.agent_type },
  capability: { help: "capability that it advertises", get: (agent) => agent.capabilities },
  service: { help: "service that it offers", get: (agent) => agent.services },
  tag: { help: "tag", get: (agent) => agent.tags },
  label: {
    help: "label: name=value",
    get: (agent) => Object.entries(agent.labels).map(([name, value]) => `${name}=${value}`),
  },
  region: { help: "region of its location", get: (agent) => agent.location?.region ?? "" },
  zone: { help: "zone of its location", get: (agent) => agent.location?.zone ?? "" },
  version: { help: "version", get: (agent) => agent.version },
  health: { help: "health from 0 to 1, as health:<0.7", get: (agent) => agent.health_score, isNumber: true },
  load: { help: "share of its capacity, as load:>=0.8", get: (agent) => loadOf(agent), isNumber: true },
};
const COMPARE = {
  "": (a, b) => a === b,
  "<": (a, b) => a < b,
  "<=": (a, b) => a <= b,
  ">": (a, b) => a > b,
  ">=": (a, b) => a >= b,
};

/** Return the share of its capacity that an agent uses, 0 to 1. */
export const loadOf = (agent) =>
  agent.capacity > 0 ? Math.min(1, agent.load / agent.capacity) : agent.load > 0 ? 1 : 0;

/** Return the fields with the values that the agents have, for completion. */
export function fieldsOfFleet(agents) {
  return Object.entries(FIELDS).map(([name, field]) => {
    if (field.values || field.isNumber || name === "id") return { name, help: field.help, values: field.values ?? [] };
    const values = new Set();
    for (const agent of agents) for (const value of [field.get(agent)].flat()) if (value) values.add(value);
    return { name, help: field.help, values: [...values].sort().slice(0, 200) };
  });
}

/**
 * Return a function that tells whether an agent meets a query.
 *
 * @param {string} text
 * @returns {(agent: import("../store.js").Agent) => boolean}
 * @throws {Error} with a message for people.
 */
export function parseFleetQuery(text) {
  const tests = [...text.matchAll(/(?:[^\s"]|"[^"]*")+/g)].map(([term]) => parseTerm(term));
  return (agent) => tests.every((test) => test(agent));
}

function parseTerm(term) {
  const isNegated = term.startsWith("-") && term.length > 1;
  const [, name, values] = /^-?(?:([a-z]+):)?(.*)$/s.exec(term);
  const test = name ? fieldTest(name, values) : wordTest(values);
  return isNegated ? (agent) => !test(agent) : test;
}

function fieldTest(name, text) {
  const field = FIELDS[name];
  if (!field) throw new Error(`There is no field “${name}”. Fields: ${Object.keys(FIELDS).join(", ")}.`);
  if (text === "") return () => true; // it is being typed
  const tests = text.split(",").map((value) => (field.isNumber ? numberTest(name, value) : textTest(value)));
  return (agent) => [field.get(agent)].flat().some((found) => tests.some((test) => test(found)));
}

function numberTest(name, text) {
  const found = /^(<=|>=|<|>|)(\d*\.?\d+)(%?)$/.exec(text);
  if (!found) throw new Error(`${name}: “${text}” is not a number. Example: ${name}:>=0.8`);
  const limit = Number(found[2]) / (found[3] ? 100 : 1);
  return (value) => COMPARE[found[1]](value, limit);
}

function textTest(text) {
  const wanted = text.replaceAll('"', "").toLowerCase();
  if (wanted.endsWith("*")) return (value) => value.toLowerCase().startsWith(wanted.slice(0, -1));
  return (value) => value.toLowerCase() === wanted;
}

function wordTest(text) {
  const wanted = text.replaceAll('"', "").toLowerCase();
  return (agent) =>
    [agent.agent_id, agent.agent_type, ...agent.capabilities, ...agent.tags].some((value) =>
      value.toLowerCase().includes(wanted),
    );
}
