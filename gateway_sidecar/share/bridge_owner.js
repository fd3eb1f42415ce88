// Whose a connection to a gRPC bridge is. Run by nginx for each connection, of which a router makes few.
//
// The kernel's table of TCP sockets names the user of the other end, since it is on this machine. Only connections of
// the user that nginx itself runs as are let in: the router's.

import fs from 'fs';

function owner_of_nginx() {
    return /\nUid:\s+\d+\s+(\d+)/.exec(fs.readFileSync('/proc/self/status'))[1];
}

// `127.0.0.1`, 24001 -> `0100007F:5DC1`; an IPv6 address likewise, in words of four bytes as the machine has them.
function as_the_kernel_writes(bytes, port) {
    const little = new Uint8Array(new Uint16Array([1]).buffer)[0] === 1;
    let text = '';
    for (let word = 0; word < bytes.length; word += 4) {
        for (let at = 0; at < 4; at++) {
            text += hex(bytes[word + (little ? 3 - at : at)], 2);
        }
    }
    return text + ':' + hex(port, 4);
}

function hex(number, digits) {
    return ('0000' + number.toString(16).toUpperCase()).slice(-digits);
}

function bytes_of(address) {
    if (address.indexOf(':') < 0) {
        return address.split('.').map(Number);
    }
    const halves = address.split('::');
    const words = halves.map(half => half === '' ? [] : half.split(':'));
    if (halves.length === 2) {
        while (words[0].length + words[1].length < 8) {
            words[0].push('0');
        }
    }
    const bytes = [];
    words[0].concat(words[1] || []).forEach(word => {
        const value = parseInt(word, 16);
        bytes.push(value >> 8, value & 255);
    });
    return bytes;
}

function check(s) {
    const v = s.variables;
    const there = as_the_kernel_writes(bytes_of(v.remote_addr), Number(v.remote_port));
    const here = as_the_kernel_writes(bytes_of(v.server_addr), Number(v.server_port));
    const table = fs.readFileSync(v.remote_addr.indexOf(':') < 0 ? '/proc/net/tcp' : '/proc/net/tcp6').toString();
    const at = table.indexOf(there + ' ' + here);
    // After both addresses: state, queues, timer, retransmissions, and the user.
    const owner = at < 0 ? null : table.slice(at, at + 200).split(/\s+/)[6];
    if (owner === owner_of_nginx()) {
        s.allow();
    } else {
        s.warn('a connection of user ' + owner + ' to a bridge is refused: bridges serve the router only');
        s.deny();
    }
}

export default {check};
