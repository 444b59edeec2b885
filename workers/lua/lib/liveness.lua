-- The limits of an agent's life, in every script of the registry.
-- ARGV[5] missed beats after which an agent is stale
-- ARGV[6] ms after which one that declares no interval is stale
-- ARGV[7] ms after which a loss is announced again while tasks are still in flight
local MISSED_BEATS, AGENT_TIMEOUT, REPEAT_LOSS = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
