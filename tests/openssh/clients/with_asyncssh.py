"""A workspace seen by asyncssh: the same as with_paramiko.py, with another library's habits.

Arguments: the ProxyCommand, a folder in the workspace, the port of an echo server there.
"""

import asyncio
import os
import sys

import asyncssh

proxy, folder, port = sys.argv[1], sys.argv[2], int(sys.argv[3])


async def main():
    connecting = asyncssh.connect(
        "box", username="anyone", proxy_command=proxy, known_hosts=None, client_keys=None, agent_path=None, config=None
    )
    async with connecting as connection:
        done = await connection.run("cat; echo told >&2; exit 7", input="sent")
        assert (done.stdout, done.stderr, done.exit_status) == ("sent", "told\n", 7)
        done = await connection.run("kill -TERM $$")
        assert done.exit_signal[0] == "TERM", done.exit_signal
        done = await connection.run("tty >/dev/null && stty size", term_type="xterm", term_size=(132, 43))
        assert done.stdout.strip() == "43 132", done.stdout
        data = os.urandom(5_000_000)
        async with connection.start_sftp_client() as sftp:
            name = f"{folder}/asyncssh.bin"
            async with sftp.open(name, "wb") as file:
                await file.write(data)
            assert (await sftp.stat(name)).size == len(data)
            async with sftp.open(name, "rb") as file:
                assert await file.read() == data
            await sftp.remove(name)
        listener = await connection.forward_local_port("127.0.0.1", 0, "127.0.0.1", port)
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.get_port())
        writer.write(b"through")
        writer.write_eof()
        assert await reader.read() == b"through"
        writer.close()
        # A port of the workspace leads here.
        back = await connection.forward_remote_port("127.0.0.1", 0, "127.0.0.1", port)
        reader, writer = await asyncio.open_connection("127.0.0.1", back.get_port())
        writer.write(b"back")
        writer.write_eof()
        assert await reader.read() == b"back"
        writer.close()
        back.close()
        many = await asyncio.gather(*(connection.run(f"echo {n}") for n in range(20)))
        assert [m.stdout for m in many] == [f"{n}\n" for n in range(20)]


asyncio.run(asyncio.wait_for(main(), 60))
print("well")
