-- Capped streams, and the logs among them.
-- include: base
-- keys: size:{stream} string rw | log:progress stream w | log:reports stream w | log:learned stream w
-- LIMITS.log_bytes  bytes kept of each log
-- LIMITS.progress_log_bytes  bytes kept of log:progress, log:reports and log:learned
-- A capped stream (a log, replies, dead:in) never holds more bytes than its cap. Field names and values are counted.
-- The stream is divided into sections of a quarter of the cap. The key size:{stream} holds the bytes of the newest
-- section, then the ids at which the newest sections begin, three at most. When a section begins, entries older than the
-- oldest of these ids are trimmed. The key is read and written once for each stream and batch. Entries appended while there was
-- no such key are not counted; they are trimmed with the section that follows them.
local capped = {}
local function load_size(name, most)
  local stored = redis.pcall('GET', P .. 'size:' .. name)
  local stream = { key = P .. name, section = math.floor(tonumber(most) / 4), bytes = 0, begins = {} }
  if type(stored) == 'string' then
    local bytes, ids = string.match(stored, '^(%d+)(.*)$')
    stream.bytes = tonumber(bytes or 0)
    for id in string.gmatch(ids or '', '%S+') do
      stream.begins[#stream.begins + 1] = id
    end
  end
  capped[name] = stream
  return stream
end

local function count_entry(stream, id, ...)
  local bytes, texts = 0, { ... }
  for i = 1, #texts do
    bytes = bytes + #texts[i]
  end
  if stream.bytes > 0 and stream.bytes + bytes > stream.section then
    stream.bytes = 0
    local begins = stream.begins
    begins[#begins + 1] = id
    if #begins > 3 then
      redis.pcall('XTRIM', stream.key, 'MINID', table.remove(begins, 1))
    end
  end
  stream.bytes = stream.bytes + bytes
end

-- Appends an entry to a capped stream; returns its id, or the error. `entries` also caps the stream by count, at once.
local function append_capped(name, bytes, entries, ...)
  local stream = capped[name] or load_size(name, bytes)
  local id
  if entries then
    id = redis.pcall('XADD', stream.key, 'MAXLEN', '~', entries, '*', ...)
  else
    id = redis.pcall('XADD', stream.key, '*', ...)
  end
  if type(id) == 'string' then
    count_entry(stream, id, ...)
  end
  return id
end

local function save_size(name, ttl)
  local stream = capped[name]
  local stored = table.concat({ int(stream.bytes), unpack(stream.begins) }, ' ')
  if ttl then
    redis.pcall('SET', P .. 'size:' .. name, stored, 'PX', ttl)
  else
    redis.pcall('SET', P .. 'size:' .. name, stored)
  end
  capped[name] = nil
end

-- Appends an entry to a log, which is trimmed once a batch. As with a reply, a failed write undoes nothing. What brief
-- logs hold matters for seconds only.
local logs, BRIEF = {}, { ['log:progress'] = true, ['log:reports'] = true, ['log:learned'] = true }
local function log(name, ...)
  append_capped(name, BRIEF[name] and LIMITS.progress_log_bytes or LIMITS.log_bytes, nil, ...)
  logs[name] = P .. name
end
