-- The minimum of a middle hop that still chooses: each task of a batch goes to the least loaded agent.
-- KEYS[1] stream of tasks, KEYS[2] zset agent -> tasks given, ARGV: group, then entry id | task id | data for each task
local time = redis.call('TIME')
local now = string.format('%.0f', tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000))
local entries = {}
for i = 2, #ARGV, 3 do
  local agent = redis.call('ZRANGE', KEYS[2], 0, 0)[1]
  redis.call('ZINCRBY', KEYS[2], 1, agent)
  redis.call('HSET', 'task:' .. ARGV[i + 1], 'task_id', ARGV[i + 1], 'state', 'assigned', 'agent_id', agent, 'attempt', 1,
    'priority', 'normal', 'entry', ARGV[i], 'assigned_at', now, 'body', ARGV[i + 2])
  redis.call('XADD', 'inbox:' .. agent, '*', 'task_id', ARGV[i + 1], 'data', ARGV[i + 2])
  entries[#entries + 1] = ARGV[i]
end
redis.call('XACK', KEYS[1], ARGV[1], unpack(entries))
return #entries
