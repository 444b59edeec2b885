-- The facets of agents: a set of agents for each value, and a set of all values that an agent has.
-- include: base
-- keys: agents:by:{facet}:{value} set rw | agents:facets set w

-- Adds an agent to the sets of its facets.
local function add_facets(id, facets)
  for facet in string.gmatch(facets, '%S+') do
    call('SADD', P .. 'agents:by:' .. facet, id)
    call('SADD', P .. 'agents:facets', facet)
  end
end

-- Removes an agent from the set of a facet; a value that no agent has any more is removed too.
local function remove_facet(id, facet)
  if call('SREM', P .. 'agents:by:' .. facet, id) == 1 and call('EXISTS', P .. 'agents:by:' .. facet) == 0 then
    call('SREM', P .. 'agents:facets', facet)
  end
end
