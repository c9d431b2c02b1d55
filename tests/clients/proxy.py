"""A proxy that opens TLS as api.twitter.com and hands each request to the gateway, as a production front end does:
proxy.py CERTIFICATE KEY GATEWAY. Clients whose address is fixed come to the gateway through it by their proxy setting.
"""

import asyncio
import ssl
import sys

certificate, key, gateway = sys.argv[1:]
tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
tls.load_cert_chain(certificate, key)


async def pump(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def serve(reader, writer):
    await reader.readuntil(b"\r\n\r\n")  # CONNECT api.twitter.com:443
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    await writer.start_tls(tls)
    gateway_reader, gateway_writer = await asyncio.open_connection(*gateway.split(":"))
    await asyncio.gather(pump(reader, gateway_writer), pump(gateway_reader, writer))


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print("proxy on 127.0.0.1:%d" % server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


asyncio.run(main())
