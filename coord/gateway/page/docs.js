// Shows the OpenAPI document of this gateway, and sends requests to it. No other host is contacted.
"use strict";

const prefix = location.pathname.replace(/\/docs\/?$/, "");
const get = (id) => document.getElementById(id);

function add(parent, name, text, attributes = {}) {
  const element = document.createElement(name);
  if (text !== undefined) element.textContent = text;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  parent.append(element);
  return element;
}

function resolve(api, schema) {
  return schema && schema.$ref ? api.components.schemas[schema.$ref.split("/").pop()] : schema;
}

function typeOf(schema) {
  if (!schema) return "any";
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.enum) return schema.enum.join(" | ");
  if (schema.anyOf) return schema.anyOf.map(typeOf).join(" or ");
  if (schema.type === "array") return `list of ${typeOf(schema.items)}`;
  return schema.type || "any";
}

function fields(api, parent, schema, depth = 0) {
  const found = resolve(api, schema);
  if (!found || !found.properties) return;
  const table = add(parent, "table");
  for (const [name, kind] of Object.entries(found.properties)) {
    const row = add(table, "tr");
    add(row, "td", name + ((found.required || []).includes(name) ? " (required)" : ""));
    const cell = add(row, "td", typeOf(kind));
    const inner = [kind, ...(kind.anyOf || [])].map((one) => one.items || one).find((one) => one.$ref);
    if (inner && depth < 2) {
      const more = add(cell, "details");
      add(more, "summary", "fields");
      fields(api, more, inner, depth + 1);
    }
  }
}

async function send(form, method, path, parameters, output) {
  let url = prefix + path;
  const query = new URLSearchParams();
  const headers = {};
  for (const parameter of parameters) {
    const value = form.elements[parameter.name].value;
    if (parameter.in === "path") url = url.replace(`{${parameter.name}}`, encodeURIComponent(value));
    else if (value && parameter.in === "query") query.set(parameter.name, value);
    else if (value) headers[parameter.name] = value;
  }
  const credential = get("credential").value;
  if (credential) headers.Authorization = `Bearer ${credential}`;
  const body = form.elements.body && form.elements.body.value;
  if (body) headers["Content-Type"] = "application/json";
  if ([...query].length) url += `?${query}`;
  output.hidden = false;
  output.textContent = `${method} ${url} …`;
  try {
    const response = await fetch(url, { method, headers, body: body || undefined });
    const text = await response.text();
    let shown = text;
    try { shown = JSON.stringify(JSON.parse(text), null, 2); } catch { /* it is no JSON */ }
    output.textContent = `${method} ${url}\n${response.status} ${response.statusText}\n\n${shown}`;
  } catch (error) {
    output.textContent = `${method} ${url}\n${error}`;
  }
}

function show(api, parent, path, method, operation) {
  const details = add(parent, "details");
  const summary = add(details, "summary");
  add(summary, "span", method.toUpperCase(), { class: "method" });
  add(summary, "span", path, { class: "path" });
  add(summary, "span", operation.summary);
  details.dataset.operation = `${method.toUpperCase()} ${path}`;
  details.dataset.text = `${method} ${path} ${operation.summary}`.toLowerCase();
  if (operation.description) add(details, "p", operation.description);
  const form = add(details, "form");
  const parameters = operation.parameters || [];
  if (parameters.length) {
    const table = add(form, "table");
    for (const parameter of parameters) {
      const row = add(table, "tr");
      const id = `${operation.operationId}-${parameter.name}`;
      const name = add(row, "td");
      add(name, "label", parameter.name, { for: id });
      add(name, "span", `(${parameter.in}${parameter.required ? ", required" : ""})`);
      add(row, "td", typeOf(parameter.schema));
      add(add(row, "td"), "input", undefined, {
        id,
        name: parameter.name,
        placeholder: parameter.example === undefined ? "" : String(parameter.example),
        ...(parameter.required && { required: "" }),
      });
    }
  }
  const content = operation.requestBody && operation.requestBody.content["application/json"];
  if (content) {
    fields(api, form, content.schema);
    const example = JSON.stringify(content.example || {}, null, 2);
    add(form, "textarea", example, { name: "body", rows: Math.min(15, example.split("\n").length + 1), "aria-label": "body" });
  }
  add(form, "button", "Send");
  const output = add(form, "pre", undefined, { role: "region", "aria-label": "Response", "aria-live": "polite", tabindex: "0" });
  output.hidden = true;
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send(form, method.toUpperCase(), path, parameters, output);
  });
  const responses = add(details, "table");
  for (const [status, response] of Object.entries(operation.responses)) {
    const row = add(responses, "tr");
    add(row, "td", status);
    const cell = add(row, "td", response.description);
    if (status < "300" && response.content) fields(api, cell, Object.values(response.content)[0].schema);
  }
}

async function start() {
  const main = get("operations");
  get("source").href = `${prefix}/schema/openapi.json`;
  const api = await (await fetch(`${prefix}/schema/openapi.json`)).json();
  get("description").textContent = api.info.description;
  const sections = new Map();
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      const tag = operation.tags[0];
      if (!sections.has(tag)) {
        const section = add(main, "section");
        add(section, "h2", tag);
        sections.set(tag, section);
      }
      show(api, sections.get(tag), path, method, operation);
    }
  }
  get("filter").addEventListener("input", (event) => {
    const wanted = event.target.value.toLowerCase();
    for (const one of main.querySelectorAll("section > details")) one.hidden = !one.dataset.text.includes(wanted);
    for (const one of sections.values()) one.hidden = !one.querySelector(":scope > details:not([hidden])");
    get("found").textContent = main.querySelector("section:not([hidden])") ? "" : "No call matches.";
  });
  get("settings").addEventListener("submit", (event) => event.preventDefault());
}

start().catch((error) => { get("operations").textContent = `The OpenAPI document is not available: ${error}`; });
