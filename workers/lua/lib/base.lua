-- The base of every script: namespace, limits, time, and counters.
-- keys: counters hash rw
-- KEYS[1]  the namespace prefix, such as "{coord}:". Every key is built from it, so all keys share its slot. The `keys`
--   lines of a file list the keys that the file itself names, with names and types as in coord/keys.py. r: it reads; w:
--   it writes or deletes. in:* stands for streams that ARGV names. Keys of an included part are in the header of that
--   part.
-- ARGV[1]  now, ms since 1970; empty: the server's TIME
-- ARGV[2]  limits, separated by spaces: name=value. Each file lists the limits that it reads.
local P = KEYS[1]
local call = redis.call

-- The limits, as text. Each is looked for when it is first read: most calls read few.
local LIMITS = setmetatable({}, {
  __index = function(limits, name)
    local _, last = string.find(' ' .. ARGV[2], ' ' .. name .. '=', 1, true)
    local text = last and string.match(ARGV[2], '^%S+', last)
    limits[name] = text
    return text
  end,
})

-- Returns a whole number as a string, never in the exponent form.
local function int(number)
  return string.format('%d', math.floor(number + 0.5))
end

local now = tonumber(ARGV[1])
if not now then
  local time = call('TIME')
  now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end
local NOW = int(now)

-- Returns the ms and the sequence number of an entry id.
local function entry_ms(id)
  local ms, seq = string.match(id, '^(%d+)%-(%d+)$')
  return tonumber(ms), tonumber(seq)
end

-- Returns true if an entry is later than another one: facts are last-writer-wins by entry id.
local function is_later(entry, than)
  if not than or than == '' then
    return true
  end
  local ms, seq = entry_ms(entry)
  local than_ms, than_seq = entry_ms(than)
  return ms > than_ms or (ms == than_ms and seq > than_seq)
end

-- Counters are gathered and written once, at the end of the batch. This checks their type before the batch begins.
call('HLEN', P .. 'counters')
local bumps = {}
local function bump(name, by)
  bumps[name] = (bumps[name] or 0) + by
end
