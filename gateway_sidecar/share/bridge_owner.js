// Whose a connection to a gRPC bridge is. Run by nginx for each connection, of which a router makes few.
//
// The kernel knows the user of the other end, since it is on this machine; here is no way to ask it but to read the whole
// table of connections, which takes hundreds of milliseconds where there are many. So nginx asks its own HTTP side, which
// asks the kernel for this one (bridge_owner.lua). Only the user that nginx itself runs as is let in: the router's.

async function check(s) {
    const v = s.variables;
    const there = `${v.remote_addr} ${v.remote_port} ${v.server_addr} ${v.server_port}`;
    try {
        const answer = await ngx.fetch(`${v.gateway_owner_url}?${encodeURIComponent(there)}`,
                                       {headers: {Authorization: `Bearer ${v.gateway_key}`}});
        if (answer.status === 204) {
            s.allow();
            return;
        }
    } catch (error) {
        s.error(`nobody tells whose a connection to a bridge is: ${error.message}`);
    }
    s.deny();
}

export default {check};
