#!lua flags=allow-oom
-- Takes expired messages out of the inboxes of their receivers: they become dead letters. A message that is no longer in
-- its inbox was read.
-- include: base batches unread
-- keys: messages:expiring zset rw | inbox:{agent}:{lane} stream rw
-- LIMITS.messages  maximum number of messages examined
-- Returns {examined, expired}: two numbers of messages
-- Events in log:messages: message.dead
local rows = call('ZRANGEBYSCORE', P .. 'messages:expiring', '-inf', NOW, 'LIMIT', 0, tonumber(LIMITS.messages))

-- Returns the time and the number of the oldest entry of an inbox; false if it is empty. Most messages are read by the
-- time at which they expire, and this says so of all of an inbox at once.
local oldest = {}
local function oldest_of(inbox)
  if oldest[inbox] == nil then
    local first = call('XRANGE', P .. 'inbox:' .. inbox, '-', '+', 'COUNT', 1)[1]
    oldest[inbox] = first and { entry_ms(first[1]) }
  end
  return oldest[inbox]
end

local function expire(row)
  local inbox, entry = string.match(row, '^(%S+) (%S+) ')
  local first, ms, seq = oldest_of(inbox), entry_ms(entry)
  if not first or ms < first[1] or (ms == first[1] and seq < first[2]) then
    return 'READ'
  end
  local key = P .. 'inbox:' .. inbox
  local item = call('XRANGE', key, entry, entry)[1]
  if not item then
    return 'READ'
  end
  end_unread(entry, item[2], 'message_expired', 'its time to live passed before it was read')
  call('XDEL', key, entry)
  return 'EXPIRED'
end

local expired = 0
for _, row in ipairs(rows) do
  if guarded(expire, row) == 'EXPIRED' then
    expired = expired + 1
  end
end
if #rows > 0 then
  call('ZREM', P .. 'messages:expiring', unpack(rows))
end
finish()
return { int(#rows), int(expired) }
