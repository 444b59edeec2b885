#!lua
-- Delivers direct messages into their receivers' inboxes. The same id twice has one effect.
-- include: base messages
-- keys: message:{id} hash rw | messages:dead zset rw | in:messages:{lane} stream w
-- ARGV[5] to ARGV[9] as in the part of messages
-- ARGV[10] number of messages (0: no more than dead letters are forgotten), then for each:
--   entry id | lane | caller or '' | message id | digest | sender id | receiver id | message_type | ttl, ms
--   | payload, opaque JSON | correlation id or '' | reply_to or ''
-- Returns {words}. Words: DELIVERED; DUPLICATE; CONFLICT (other content under this id); EXPIRED, UNKNOWN (no such receiver),
--   FULL (its lane has no room): dead letters with a reason; ERROR <why> (not consumed)
-- Events in log:messages: message.delivered, message.dead
local function deliver(i)
  local entry, lane, caller, id, digest, sender, receiver, kind, ttl, payload, correlation, reply_to = unpack(ARGV, i, i + 11)
  local stream, key = 'in:messages:' .. lane, P .. 'message:' .. id
  local known = call('HGET', key, 'digest')
  if known then
    if known ~= digest then
      answer(caller, stream, entry, 'id_conflict', "message_id '" .. id .. "' was used before with other content")
      return 'CONFLICT'
    end
    answer(caller, stream, entry)
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
    answer(caller, stream, entry, code, reason)
  else
    hand_over({
      id = id, kind = kind, payload = payload, sender = sender, receiver = receiver, lane = lane, sent_at = sent_at,
      expires_at = expires_at, correlation_id = correlation, reply_to = reply_to,
    })
    answer(caller, stream, entry)
  end
  call('HSET', key, 'digest', digest, 'sender_id', sender, 'receiver_id', receiver, 'message_type', kind,
    'priority', lane, 'status', status, 'sent_at', int(sent_at), 'expires_at', int(expires_at),
    'reason', reason or '', 'body', payload)
  if word then
    -- For whoever replays it.
    call('HSET', key, 'correlation_id', correlation, 'reply_to', reply_to)
  end
  call('PEXPIRE', key, int(word and DEAD_KEPT or math.max(KEPT, expires_at - now)))
  return word or 'DELIVERED'
end

-- Dead letters are forgotten by age (their records end by themselves) and by count; a call without messages does just that.
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
finish()
for stream, ids in pairs(done) do
  consume(stream, 'router', ids)
end
if bumps.messages_dead or tonumber(ARGV[10]) == 0 then
  forget_dead()
end
return { words }
