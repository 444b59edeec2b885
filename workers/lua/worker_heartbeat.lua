#!lua flags=allow-oom
-- Records that a worker is alive, and removes consumers of its kind that are gone and hold nothing; or records that a
-- worker leaves, so that nobody counts with it until its record expires.
-- include: base
-- keys: workers:{kind} zset rw | in:* stream rw | worker:{kind}:{name} hash w
-- ARGV[3]  kind
-- ARGV[4]  name
-- LIMITS.presence_ttl_ms  ms that the worker's record lasts
-- LIMITS.consumer_idle_ms  ms of idleness after which a consumer without a record is removed
-- ARGV[5]  1 if the worker leaves, else 0; a record of another process is kept: one of the same name has started
-- ARGV[6]  number n of fields, n times: name | value; of one that leaves: its pid, host and started_at
-- then the number of streams that the kind reads, without namespace, then each
-- Returns the names of the workers of this kind that are alive
local kind, name, ttl, idle = ARGV[3], ARGV[4], LIMITS.presence_ttl_ms, tonumber(LIMITS.consumer_idle_ms)
local key = P .. 'worker:' .. kind .. ':' .. name
local count = tonumber(ARGV[6])
if ARGV[5] == '1' then
  for i = 7, 6 + count * 2, 2 do
    if call('HGET', key, ARGV[i]) ~= ARGV[i + 1] then
      return {}
    end
  end
  call('DEL', key)
  call('ZREM', P .. 'workers:' .. kind, name)
  return {}
end
call('HSET', key, 'progress_at', NOW, unpack(ARGV, 7, 6 + count * 2))
call('PEXPIRE', key, ttl)
call('ZADD', P .. 'workers:' .. kind, NOW, name)
call('ZREMRANGEBYSCORE', P .. 'workers:' .. kind, '-inf', int(now - tonumber(ttl)))

local at = 7 + count * 2
for i = at + 1, at + tonumber(ARGV[at]) do
  local stream = P .. ARGV[i]
  if call('EXISTS', stream) == 1 then
    for _, consumer in ipairs(call('XINFO', 'CONSUMERS', stream, kind)) do
      local found = {}
      for j = 1, #consumer, 2 do
        found[consumer[j]] = consumer[j + 1]
      end
      -- That nothing is pending is checked in the same script that deletes: no entry can be lost.
      if found.pending == 0 and found.idle > idle and not call('ZSCORE', P .. 'workers:' .. kind, found.name) then
        call('XGROUP', 'DELCONSUMER', stream, kind, found.name)
      end
    end
  end
end
return call('ZRANGE', P .. 'workers:' .. kind, 0, -1)
