//! The embedded TCP/IP stack: demultiplexer, TCP flows, UDP, ICMPv6 echo and TSMP.
