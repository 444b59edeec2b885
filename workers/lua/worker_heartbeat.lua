#!lua flags=allow-oom
-- Records that a worker is alive, and removes consumers of its kind that are gone and hold nothing.
-- include: base
-- keys: workers:{kind} zset rw | in:* stream rw | worker:{kind}:{name} hash w
-- ARGV[5]  kind
-- ARGV[6]  name
-- ARGV[7]  ms that the worker's record lasts
-- ARGV[8]  ms of idleness after which a consumer without a record is removed
-- ARGV[9]  number n of fields, n times: name | value
-- then the number of streams that the kind reads, without namespace, then each
-- Returns the names of the workers of this kind that are alive
local kind, name, ttl, idle = ARGV[5], ARGV[6], ARGV[7], tonumber(ARGV[8])
local key = P .. 'worker:' .. kind .. ':' .. name
local count = tonumber(ARGV[9])
call('HSET', key, 'progress_at', NOW, unpack(ARGV, 10, 9 + count * 2))
call('PEXPIRE', key, ttl)
call('ZADD', P .. 'workers:' .. kind, NOW, name)
call('ZREMRANGEBYSCORE', P .. 'workers:' .. kind, '-inf', int(now - tonumber(ttl)))

local at = 10 + count * 2
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
