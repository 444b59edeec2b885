-- Dead letters of messages: the end of their records.
-- include: base
-- keys: message:{id} hash rw
-- Removes the record of a dead letter that has left the index; returns its bytes, about. Its id may have been used again
-- since. A request whose sender still waits keeps its record until the wait ends, or nothing would tell the sender.
local function remove_letter(id)
  local key = P .. 'message:' .. id
  if redis.pcall('HGET', key, 'status') ~= 'dead' or call('HGET', key, 'request') == 'open' then
    return 0
  end
  local bytes = call('HSTRLEN', key, 'body')
  call('UNLINK', key)
  return bytes
end
