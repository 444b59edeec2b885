#!lua
-- Delivers direct messages into their receivers' inboxes. The same id twice has one effect.
-- include: base
-- ARGV[5] entries that an inbox lane holds at most
-- ARGV[6] entries that the critical lane holds besides
-- ARGV[7] ms that a message's record is kept at least
-- ARGV[8] ms that a dead letter is kept
-- ARGV[9] dead letters kept at most
-- ARGV[10] number of messages, then for each:
--   entry id | lane | caller or '' | message id | digest | sender id | receiver id | message_type | ttl, ms
--   | payload, opaque JSON | correlation id or '' | reply_to or ''
-- Returns {words}. Words: DELIVERED; DUPLICATE; CONFLICT (other content under this id); EXPIRED, UNKNOWN (no such receiver),
--   FULL (its lane has no room): dead letters with a reason; ERROR <why> (not consumed)
-- Events in log:messages: message.delivered, message.dead
local QUOTA, CRITICAL_EXTRA, KEPT = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local DEAD_KEPT, DEAD_MOST = tonumber(ARGV[8]), tonumber(ARGV[9])

local function log_message(kind, id, ...)
  log('log:messages', 'type', kind, 'message_id', id, ...)
end

local function undeliverable(lane, receiver, expires_at)
  if now >= expires_at then
    return 'EXPIRED', 'message_expired', 'its time to live passed before it was delivered'
  end
  local status = call('HGET', P .. 'agent:' .. receiver, 'status')
  if not status then
    return 'UNKNOWN', 'agent_not_found', "Agent '" .. receiver .. "' not found"
  end
  local room = QUOTA + (lane == 'critical' and CRITICAL_EXTRA or 0)
  if call('XLEN', P .. 'inbox:' .. receiver .. ':' .. lane) >= room then
    return 'FULL', 'message_undeliverable', "the inbox of agent '" .. receiver .. "' is full"
  end
end

local function deliver(i)
  local entry, lane, caller, id, digest, sender, receiver, kind, ttl, payload, correlation, reply_to = unpack(ARGV, i, i + 11)
  local key = P .. 'message:' .. id
  local known = call('HGET', key, 'digest')
  if known then
    if known ~= digest then
      answer(caller, entry, 'id_conflict', "message_id '" .. id .. "' was used before with other content")
      return 'CONFLICT'
    end
    answer(caller, entry)
    return 'DUPLICATE'
  end
  local sent_at = entry_ms(entry)
  local expires_at = sent_at + tonumber(ttl)
  local word, code, reason = undeliverable(lane, receiver, expires_at)
  local status = word and 'dead' or 'delivered'
  if word then
    call('ZADD', P .. 'messages:dead', NOW, id)
    bump('messages_dead', 1)
    log_message('message.dead', id, 'sender_id', sender, 'receiver_id', receiver, 'code', code, 'reason', reason)
    answer(caller, entry, code, reason)
  else
    local fields = { 'message_type', kind, 'data', payload, 'id', id, 'sender_id', sender, 'receiver_id', receiver,
      'priority', lane, 'timestamp', int(sent_at), 'expires_at', int(expires_at) }
    if correlation ~= '' then
      fields[#fields + 1] = 'correlation_id'
      fields[#fields + 1] = correlation
    end
    if reply_to ~= '' then
      fields[#fields + 1] = 'reply_to'
      fields[#fields + 1] = reply_to
    end
    call('XADD', P .. 'inbox:' .. receiver .. ':' .. lane, '*', unpack(fields))
    bump('messages_delivered', 1)
    log_message('message.delivered', id, 'sender_id', sender, 'receiver_id', receiver)
    answer(caller, entry)
  end
  call('HSET', key, 'digest', digest, 'sender_id', sender, 'receiver_id', receiver, 'message_type', kind,
    'priority', lane, 'status', status, 'sent_at', int(sent_at), 'expires_at', int(expires_at),
    'reason', reason or '', 'body', payload)
  call('PEXPIRE', key, int(word and DEAD_KEPT or math.max(KEPT, expires_at - now)))
  return word or 'DELIVERED'
end

-- Dead letters are forgotten by age (their records end by themselves) and by count.
local function forget_dead()
  call('ZREMRANGEBYSCORE', P .. 'messages:dead', '-inf', int(now - DEAD_KEPT))
  local over = call('ZCARD', P .. 'messages:dead') - DEAD_MOST
  if over > 0 then
    local popped = call('ZPOPMIN', P .. 'messages:dead', math.min(over, 1000))
    for i = 1, #popped, 2 do
      call('DEL', P .. 'message:' .. popped[i])
    end
  end
end

local words, done = {}, {}
for i = 11, 10 + tonumber(ARGV[10]) * 12, 12 do
  local word, failed = guarded(deliver, i)
  words[#words + 1] = word
  if not failed then
    local stream = 'in:messages:' .. ARGV[i + 1]
    done[stream] = done[stream] or {}
    table.insert(done[stream], ARGV[i])
  end
end
for stream, ids in pairs(done) do
  consume(stream, 'router', ids)
end
if bumps.messages_dead then
  forget_dead()
end
finish()
return { words }
