#!lua flags=allow-oom
-- Says that a worker lives, and sweeps out consumers of its kind that are gone and hold nothing.
-- include: base
-- keys: workers:{kind} zset rw | in:* stream rw | worker:{kind}:{name} hash w
-- ARGV[5] kind
-- ARGV[6] name
-- ARGV[7] ms that the presence lasts
-- ARGV[8] ms of idleness after which a consumer without presence is swept out
-- ARGV[9] number n of fields, n times: name | value
-- then the number of streams (without namespace) that the kind consumes, then each
-- Returns the names of the workers of this kind that are present
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
      local about = {}
      for j = 1, #consumer, 2 do
        about[consumer[j]] = consumer[j + 1]
      end
      -- Nothing pending, checked in the same script that deletes: no entry can be lost with it.
      if about.pending == 0 and about.idle > idle and not call('ZSCORE', P .. 'workers:' .. kind, about.name) then
        call('XGROUP', 'DELCONSUMER', stream, kind, about.name)
      end
    end
  end
end
return call('ZRANGE', P .. 'workers:' .. kind, 0, -1)
