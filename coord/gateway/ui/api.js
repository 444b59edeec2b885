/** Calls the gateway: with the credential, JSON in and out, and every failure as one kind of error. */

import { session } from "./session.js";

/** The root of the API: `/`, or `/v1/`, or behind a proxy any other path. */
export const ROOT = new URL("..", document.baseURI);

/** Called when the gateway does not accept the credential, or needs one. */
let refused = () => {};
export const onRefused = (listener) => {
  refused = listener;
};

/** A failed call; `message` is for people. */
export class ApiError extends Error {
  /**
   * @param {number} status of HTTP; 0: the gateway did not answer.
   * @param {string} code as of the gateway: `task_not_found`.
   * @param {string} message
   * @param {any} [detail]
   */
  constructor(status, code, message, detail) {
    super(message);
    this.name = "ApiError";
    this.status = status;
    this.code = code;
    this.detail = detail;
  }
}

/** Return the headers of a request: the credential, if there is one. */
export const credentials = () => (session.credential ? { Authorization: `Bearer ${session.credential}` } : {});

/** Return the URL of a path of the API; query values that are null, undefined or empty are left out. */
export function urlOf(path, query = {}) {
  const url = new URL(path.replace(/^\//, ""), ROOT);
  for (const [name, value] of Object.entries(query)) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== null && one !== undefined && one !== "") url.searchParams.append(name, one);
    }
  }
  return url;
}

/**
 * Call the API.
 *
 * @param {"GET" | "POST" | "PUT" | "DELETE"} method
 * @param {string} path such as `/agents/a1`; encode ids with `encodeURIComponent`.
 * @param {{query?: Object<string, any>, body?: any, signal?: AbortSignal}} [options]
 * @returns {Promise<any>} the body; its `status` is `accepted` if no worker has answered yet.
 * @throws {ApiError}
 */
export async function call(method, path, { query, body, signal } = {}) {
  const headers = { Accept: "application/json", ...credentials() };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(urlOf(path, query), {
      method,
      headers,
      signal,
      cache: "no-store",
      credentials: "omit",
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "unreachable", "The gateway does not answer. Check that it runs.");
  }
  return read(response);
}

export const get = (path, query, signal) => call("GET", path, { query, signal });
export const post = (path, body = {}, query) => call("POST", path, { body, query });
export const put = (path, body = {}, query) => call("PUT", path, { body, query });
export const del = (path, query) => call("DELETE", path, { query });

/**
 * Return the body of a response.
 *
 * @param {Response} response
 * @throws {ApiError} its status is no success.
 */
export async function read(response) {
  let body = null;
  try {
    body = await response.json();
  } catch {
    // a proxy answered, or the connection broke
  }
  if (response.ok && body !== null) return body;
  const error = failure(response, body);
  if (error.status === 401) refused(error);
  throw error;
}

function failure(response, body) {
  if (body?.status !== "error") {
    return new ApiError(
      response.status,
      "unexpected",
      `The gateway answered ${response.status} ${response.statusText}`.trim(),
    );
  }
  const problems = Array.isArray(body.detail)
    ? body.detail.map(({ loc, msg }) => `${loc.slice(1).join(".")}: ${msg}`)
    : [];
  return new ApiError(response.status, body.code, problems.join("; ") || body.message, body.detail);
}
