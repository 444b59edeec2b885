-- Which entries are still in their streams.
-- include: base
-- keys: in:reports stream r
-- An entry has an effect only while it is in its stream. A worker that stood still between its read and its script may
-- name entries that a sibling has handled since. The word for such an entry is GONE. The first entry of a stream is
-- looked up. From the second one on, the server's data on the stream saves the lookups: an entry that is younger than
-- every deleted one, and not older than the first one, is in the stream.
local last_stream, last_entry, last_is_present
local checked_streams, bounds = {}, {}

local function is_there(stream, entry)
  return call('XRANGE', P .. stream, entry, entry)[1] ~= nil
end

-- Returns the id from which on no entry of a stream is missing; false if the server does not say.
local function bound_of(stream)
  local info, found = call('XINFO', 'STREAM', P .. stream), {}
  for i = 1, #info, 2 do
    found[info[i]] = info[i + 1]
  end
  local deleted, first = found['max-deleted-entry-id'], found['recorded-first-entry-id']
  if not deleted or not first then
    return false
  end
  local ms, seq = entry_ms(deleted)
  local first_ms, first_seq = entry_ms(first)
  seq = seq + 1
  if first_ms > ms or (first_ms == ms and first_seq > seq) then
    ms, seq = first_ms, first_seq
  end
  return { ms = ms, seq = seq, digits = string.format('%013d', ms) }
end

-- Returns true if an entry is not older than a bound. Ids of 13 digits before the dash, the usual ones, compare as
-- text.
local byte, substring = string.byte, string.sub
local function is_beyond(entry, bound)
  if byte(entry, 14) == 45 and substring(entry, 1, 13) > bound.digits then
    return true
  end
  local ms, seq = entry_ms(entry)
  return ms > bound.ms or (ms == bound.ms and seq >= bound.seq)
end

-- Returns true while an entry is in its stream.
local function is_present(stream, entry)
  if entry == last_entry and stream == last_stream then -- the parts of one entry follow one another
    return last_is_present
  end
  if bounds[stream] == nil and checked_streams[stream] then
    bounds[stream] = bound_of(stream)
  end
  local bound = bounds[stream]
  last_stream, last_entry, checked_streams[stream] = stream, entry, true
  last_is_present = bound and is_beyond(entry, bound) or is_there(stream, entry)
  return last_is_present
end

-- Returns the time of the oldest entry in in:reports, in ms; false if there is none. It may report finished work.
local oldest_report
local function oldest_report_ms()
  if oldest_report == nil then
    local first = call('XRANGE', P .. 'in:reports', '-', '+', 'COUNT', 1)[1]
    oldest_report = first and entry_ms(first[1]) or false
  end
  return oldest_report
end

-- Returns true while in:reports holds an entry that may be older than this one, and so has to be read first. Ids of two
-- streams within one ms cannot be ordered.
local function reports_wait_before(entry)
  local oldest = oldest_report_ms()
  return oldest and oldest <= entry_ms(entry)
end
