#!lua
-- Delivers direct messages into their receivers' inboxes. The same id twice has one effect.
-- include: base messages
-- keys: message:{id} hash rw | messages:dead zset rw | in:messages:{lane} stream w
-- ARGV[5] to ARGV[9] as in the part of messages
-- ARGV[10] number of messages (0: no more than dead letters are forgotten), then for each:
--   entry id | lane | caller or '' | message id | digest | sender id | receiver id | message_type | ttl, ms
--   | payload, opaque JSON | correlation id or '' | reply_to or ''
-- Returns {words}. Words: DELIVERED; DUPLICATE; CONFLICT (other content under this id); EXPIRED, UNKNOWN (no such receiver),
--   FULL (its lane has no room): dead letters with a reason; GONE (its entry was handled before); ERROR <why> (not consumed)
-- Events in log:messages: message.delivered, message.dead
local function deliver(i)
  local entry, lane, caller, id, digest, sender, receiver, kind, ttl, payload, correlation, reply_to = unpack(ARGV, i, i + 11)
  local stream, key = 'in:messages:' .. lane, P .. 'message:' .. id
  if not is_present(stream, entry) then
    return 'GONE'
  end
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
    push_to_inbox({
      id = id, kind = kind, payload = payload, sender = sender, receiver = receiver, lane = lane, sent_at = sent_at,
      expires_at = expires_at, correlation_id = correlation, reply_to = reply_to,
    })
    answer(caller, stream, entry)
  end
  call('HSET', key, 'digest', digest, 'sender_id', sender, 'receiver_id', receiver, 'message_type', kind,
    'priority', lane, 'status', status, 'sent_at', int(sent_at), 'expires_at', int(expires_at),
    'reason', reason or '', 'body', payload)
  if word then
    -- A replay needs these. The record of a dead letter lives as long as its place in the index.
    call('HSET', key, 'correlation_id', correlation, 'reply_to', reply_to)
  else
    call('PEXPIRE', key, int(math.max(KEPT, expires_at - now)))
  end
  return word or 'DELIVERED'
end

-- Forgets dead letters by age and by count, a bounded number at a time; a call without messages does just that. Each record
-- must still be a dead letter: its id may have been used again since.
local function forget_dead()
  local index = P .. 'messages:dead'
  local over = math.max(call('ZCOUNT', index, '-inf', int(now - DEAD_KEPT)), call('ZCARD', index) - DEAD_MOST)
  if over <= 0 then
    return
  end
  local popped = call('ZPOPMIN', index, math.min(over, 1000))
  for i = 1, #popped, 2 do
    local key = P .. 'message:' .. popped[i]
    if redis.pcall('HGET', key, 'status') == 'dead' then
      call('DEL', key)
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
