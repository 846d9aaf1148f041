"""A workspace seen by paramiko: exec, status, standard error, input, a terminal, SFTP and a forward.

Arguments: the ProxyCommand, a folder in the workspace, the port of an echo server there.
"""

import os
import sys

import paramiko

proxy, folder, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
client = paramiko.SSHClient()
client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
# No key and no password: the tunnel is what lets one in.
transport = paramiko.Transport(paramiko.ProxyCommand(proxy))
transport.start_client(timeout=30)
transport.auth_none("anyone")
client._transport = transport

stdin, stdout, stderr = client.exec_command("cat; echo told >&2; exit 7", timeout=30)
stdin.write("sent")
stdin.channel.shutdown_write()
assert stdout.read() == b"sent"
assert stderr.read() == b"told\n"
assert stdout.channel.recv_exit_status() == 7

_, stdout, _ = client.exec_command("tty >/dev/null && stty size", get_pty=True, timeout=30)
assert stdout.read().strip() == b"24 80"

data = os.urandom(5_000_000)
sftp = client.open_sftp()
with sftp.open(f"{folder}/paramiko.bin", "wb") as file:
    file.set_pipelined(True)
    file.write(data)
assert sftp.stat(f"{folder}/paramiko.bin").st_size == len(data)
sftp.chmod(f"{folder}/paramiko.bin", 0o640)
sftp.rename(f"{folder}/paramiko.bin", f"{folder}/renamed.bin")
with sftp.open(f"{folder}/renamed.bin", "rb") as file:
    file.prefetch()
    assert file.read() == data
assert "renamed.bin" in sftp.listdir(folder)
sftp.symlink(f"{folder}/renamed.bin", f"{folder}/link")
assert sftp.readlink(f"{folder}/link") == f"{folder}/renamed.bin"
sftp.remove(f"{folder}/link")
sftp.remove(f"{folder}/renamed.bin")
sftp.close()

channel = transport.open_channel("direct-tcpip", ("127.0.0.1", port), ("127.0.0.1", 1), timeout=30)
channel.sendall(b"through")
channel.shutdown_write()
got = b""
while len(got) < 7:
    part = channel.recv(100)
    assert part, got
    got += part
assert got == b"through"

# Many sessions of one connection.
sessions = [client.exec_command(f"echo {n}", timeout=30)[1] for n in range(20)]
assert [s.read() for s in sessions] == [b"%d\n" % n for n in range(20)]
client.close()
print("well")
