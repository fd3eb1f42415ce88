-- How many tokens an answer took, as the answer says it: `usage` of OpenAI's and Anthropic's API, `meta_info` of
-- SGLang's own. The numbers go to two variables, which the access log and usage.lua read at the request's end.
--
-- Text inside a JSON string has its quotes escaped, so `"usage"`, quotes and all, is a name there and never a part of
-- what somebody said. Only the first numbers of the last such object count: a client's tools, which some answers repeat,
-- may hold any names, too, but not before that object's own.
--
-- It runs for each piece of an answer, so what most of them run is what LuaJIT compiles, which patterns and loops of few
-- rounds are not: it looks for plain text. `ngx.ctx` and variables, which cost more than all else, are taken only if there
-- is something to put there.

local byte, find, sub = string.byte, string.find, string.sub
local LONGEST = 8192 -- of such an object; what is beyond is not waited for
local MOST_DIGITS = 15 -- that a number of Lua's has exactly
local BEGUN = 11 -- bytes of `"meta_info"`, of which a piece may have the beginning
local LINE_FEED, QUOTE, COLON, BACKSLASH, OPENS, CLOSES = 10, 34, 58, 92, 123, 125
-- How many requests have something in `ngx.ctx`.
local kept = 0

local tokens = {}

-- Where the first byte is that is no white space.
local function past_space(text, at)
    local code = byte(text, at)
    while code == 32 or code == LINE_FEED or code == 13 or code == 9 do
        at = at + 1
        code = byte(text, at)
    end
    return at
end

-- Where the last object of this name begins, from `from` on: its brace, and its name; and where a name stands whose value
-- is yet to come.
local function last_object(text, name, from)
    local found, named
    local start, stop = find(text, name, from, true)
    while stop do
        local at = past_space(text, stop + 1)
        if byte(text, at) == COLON then at = past_space(text, at + 1) end
        local code = byte(text, at)
        if code == OPENS then
            found, named = at, start
        elseif not code then
            return found, named, start
        end
        start, stop = find(text, name, stop, true)
    end
    return found, named
end

-- Where the object ends that begins at `at`; nil if it goes on in the next piece.
local function object_end(text, at)
    local depth, quoted, here, last = 0, false, at, math.min(#text, at + LONGEST)
    while here <= last do
        local code = byte(text, here)
        if quoted then
            if code == BACKSLASH then here = here + 1 elseif code == QUOTE then quoted = false end
        elseif code == QUOTE then
            quoted = true
        elseif code == OPENS then
            depth = depth + 1
        elseif code == CLOSES then
            depth = depth - 1
            if depth == 0 then return here end
        end
        here = here + 1
    end
    if #text > at + LONGEST then return at + LONGEST end
    return nil
end

-- The first number of this name between two places.
local function number_in(text, name, from, to)
    local _, stop = find(text, name, from, true)
    if not stop or stop > to then return nil end
    local first = past_space(text, stop + 1)
    if byte(text, first) ~= COLON then return nil end
    first = past_space(text, first + 1)
    local at, code = first, byte(text, first)
    while code and code >= 48 and code < 58 do
        at = at + 1
        code = byte(text, at)
    end
    if at == first or at - first > MOST_DIGITS then return nil end
    return sub(text, first, at - 1)
end

-- What an object says, in and out, as far as it does.
local function numbers_in(text, open, close)
    return number_in(text, '"prompt_tokens"', open, close) or number_in(text, '"input_tokens"', open, close),
        number_in(text, '"completion_tokens"', open, close) or number_in(text, '"output_tokens"', open, close)
end

-- What the events say that end between two places, each as if it had come alone: Anthropic's API says the tokens of the
-- prompt in the first one, and those of the answer in the last.
local function said_in_events(text, name, from, to)
    local into, out
    local stop = find(text, "\n\r?\n", from)
    while stop and stop < to do
        local event = sub(text, from, stop)
        local open = last_object(event, name, 1)
        local close = open and object_end(event, open)
        if close then
            local now_in, now_out = numbers_in(event, open, close)
            into, out = now_in or into, now_out or out
        end
        from = stop + 1
        stop = find(text, "\n\r?\n", from)
    end
    return into, out
end

-- What a text says last of its tokens, in and out, as far as it does, and from where on it is to be seen again with what
-- comes next.
function tokens.said(text)
    local from, name = find(text, '"usage"', 1, true), '"usage"'
    if not from then from, name = find(text, '"meta_info"', 1, true), '"meta_info"' end
    if not from then return nil end
    local open, named, unfinished = last_object(text, name, from)
    if not open then return nil, nil, unfinished end
    local close, into, out = object_end(text, open), nil, nil
    if close then into, out = numbers_in(text, open, close) else unfinished = named end
    if named > from and not (into and out) then
        local before_in, before_out = said_in_events(text, name, from, named)
        into, out = into or before_in, out or before_out
    end
    return into, out, unfinished
end

local said = tokens.said

-- Notes what a text says, and returns from where on it is to be seen again.
function tokens.note(text)
    local into, out, unfinished = said(text)
    if into or out then
        local var = ngx.var
        if into then var.gateway_tokens_in = into end
        if out then var.gateway_tokens_out = out end
    end
    return unfinished
end

local note = tokens.note

-- One piece of an answer passes. What it says last counts: streams may say it with each event.
function tokens.answers()
    local text = ngx.arg[1]
    local last = byte(text, -1)
    if not last then return end
    if kept > 0 then
        local ctx = ngx.ctx
        if ctx.gateway_kept then
            text, ctx.gateway_kept, kept = ctx.gateway_kept .. text, nil, kept - 1
        end
    end
    local unfinished = note(text)
    -- An event ends with a line, and an answer in one piece with a brace: no name has begun there.
    if not unfinished and last ~= LINE_FEED and last ~= CLOSES then unfinished = #text - BEGUN + 1 end
    if unfinished then
        ngx.ctx.gateway_kept, kept = sub(text, math.max(unfinished, 1, #text - LONGEST)), kept + 1
    end
end

-- The request is over; whoever reads the tokens says so, and there may be several.
function tokens.over()
    if kept > 0 then
        local ctx = ngx.ctx
        if ctx.gateway_kept then ctx.gateway_kept, kept = nil, kept - 1 end
    end
end

return tokens
