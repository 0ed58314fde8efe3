package wg

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

func TestKeyMatchesTheWgTool(t *testing.T) {
	// Made with "wg genkey" and "wg pubkey".
	private, err := ParseSecretKey("yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := private.Public().String(), "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw="; got != want {
		t.Errorf("public key is %s, want %s", got, want)
	}
}

func TestGeneratedKeysDiffer(t *testing.T) {
	a, err1 := GeneratePrivateKey()
	b, err2 := GeneratePrivateKey()
	if err1 != nil || err2 != nil || a == b || a.IsZero() {
		t.Errorf("keys %v and %v, errors %v and %v", a == b, a.IsZero(), err1, err2)
	}
	if a[0]&7 != 0 || a[31]&0xc0 != 0x40 {
		t.Errorf("bits of the key are not set as RFC 7748 section 5 says: %x", [keySize]byte(a))
	}
	if again, err := ParseSecretKey(a.Base64()); err != nil || again != a {
		t.Errorf("a key does not survive its base64 form: %v", err)
	}
}

func TestParseKeyRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"nothing":      "",
		"31 bytes":     "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHg==",
		"not base64":   strings.Repeat("!", 44),
		"a line break": "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=\nx",
	} {
		if _, err := ParsePublicKey(text); err == nil {
			t.Errorf("%s was accepted as a key", name)
		}
	}
}

func TestSecretKeyDoesNotPrint(t *testing.T) {
	key, err := GeneratePrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "key", key.String(), "peer", fmt.Sprintf("%+v", PeerConfig{PrivateKey: key}))
	for _, text := range []string{fmt.Sprint(key), fmt.Sprintf("%v %+v %#v %s", key, key, key, key), log.String()} {
		if strings.Contains(text, key.Base64()) || strings.Contains(text, fmt.Sprint([keySize]byte(key))) {
			t.Errorf("the key shows in %q", text)
		}
	}
}
