// Another implementation of client-aes256, in Node's own crypto: the tests compare ours with it, in both directions.
//
//   node peer.mjs encrypt key.json PLAIN OBJECT [PLAIN OBJECT …]   writes OBJECT and OBJECT.mac
//   node peer.mjs decrypt key.json OBJECT PLAIN [OBJECT PLAIN …]   checks OBJECT.mac, then writes PLAIN
//
// key.json: {"encryptionKey": 64 hex characters, "iv": 32 hex characters (encrypt only; random when absent)}.
//
// The committed vectors were made in this folder by:
//   node peer.mjs encrypt key.json replica.db backup-2025-03-01T14-32-11-482Z.db
// Their IV is so close to the end that the 128-bit counter wraps inside the file. The key protects nothing.

import { createCipheriv, createDecipheriv, createHmac, randomBytes, timingSafeEqual } from 'node:crypto'
import { createReadStream, createWriteStream, readFileSync, writeFileSync } from 'node:fs'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'

const IV_BYTES = 16

async function encrypt(key, iv, plain, object) {
  const cipher = createCipheriv('aes-256-ctr', key, iv)
  const mac = createHmac('sha256', key)
  await pipeline(
    async function* () {
      mac.update(iv)
      yield iv
      for await (const chunk of createReadStream(plain)) {
        const sealed = cipher.update(chunk)
        mac.update(sealed)
        yield sealed
      }
      cipher.final()
    },
    createWriteStream(object),
  )
  writeFileSync(`${object}.mac`, mac.digest('hex'))
}

async function decrypt(key, object, plain) {
  const mac = createHmac('sha256', key)
  for await (const chunk of createReadStream(object)) mac.update(chunk)
  const expected = Buffer.from(readFileSync(`${object}.mac`, 'utf8').trim(), 'hex')
  const actual = mac.digest()
  if (expected.length !== actual.length || !timingSafeEqual(expected, actual)) throw new Error('HMAC mismatch')
  const stored = readFileSync(object)
  const decipher = createDecipheriv('aes-256-ctr', key, stored.subarray(0, IV_BYTES))
  await pipeline(Readable.from([stored.subarray(IV_BYTES)]), decipher, createWriteStream(plain))
}

const [command, keyFile, ...paths] = process.argv.slice(2)
const { encryptionKey, iv } = JSON.parse(readFileSync(keyFile, 'utf8'))
const key = Buffer.from(encryptionKey, 'hex')
try {
  if (paths.length % 2 || !['encrypt', 'decrypt'].includes(command)) throw new Error('bad usage')
  for (let i = 0; i < paths.length; i += 2) {
    if (command === 'encrypt') {
      await encrypt(key, iv ? Buffer.from(iv, 'hex') : randomBytes(IV_BYTES), paths[i], paths[i + 1])
    } else {
      await decrypt(key, paths[i], paths[i + 1])
    }
  }
} catch (error) {
  console.error(error.message)
  process.exit(1)
}
